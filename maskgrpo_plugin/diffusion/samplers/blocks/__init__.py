"""Semi-autoregressive decoding: blocks left to right, rows that join and leave between them."""
