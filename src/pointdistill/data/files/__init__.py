"""Files and where they come from: whole-or-absent writes, archives, downloads, pickles as data, processes."""
