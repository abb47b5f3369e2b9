"""Computes features of any shapes, stores them in one file, and searches them.

``data.sources.paths`` lists the shapes and reads their points in other processes, ``compute`` turns points into
features, ``loop`` collects them in chunks on disk, ``file`` joins the chunks into one file and reads it back, and
``search`` finds nearest neighbours in it. ``embed`` is the call that does all but the search.
"""
