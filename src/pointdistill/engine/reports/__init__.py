"""Tables, pictures, and HTML pages with both."""
