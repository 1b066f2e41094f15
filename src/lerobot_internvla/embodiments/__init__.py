"""What a robot's numbers mean: which joint is which dim, which cameras there are, what is relative."""
