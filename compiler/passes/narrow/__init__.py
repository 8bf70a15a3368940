"""Take channels from tasks, step by step, while the network is trained."""
