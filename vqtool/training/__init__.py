"""Training: one loop (accelerate, EMA, exact resume, JSON-lines log), and what is trained with it."""
