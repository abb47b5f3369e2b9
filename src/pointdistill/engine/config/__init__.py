"""The configuration of a run, the named recipes, and how a user's overrides are applied to them."""
