"""Tables, pictures, and the page that holds them."""
