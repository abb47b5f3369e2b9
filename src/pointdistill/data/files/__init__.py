"""Files and where they come from: writes that are complete or absent, archives, downloads, pickles, processes."""
