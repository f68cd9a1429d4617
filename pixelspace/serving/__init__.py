"""Pages in the browser: what each shows, and the guard that stands before all of them."""
