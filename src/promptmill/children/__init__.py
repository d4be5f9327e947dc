"""Processes of our own: what is said over the pipe, and what systems do differently about starting and ending them."""
