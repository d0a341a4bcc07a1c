"""Speed: ckptfs and the plain directory by turns, as ratios."""
