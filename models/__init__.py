"""Trained example networks, ready to be compiled, and the scripts that trained them."""
