"""A run as a record, the runs that have a name, and how overrides become one."""
