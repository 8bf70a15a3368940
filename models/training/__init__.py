"""Scripts that train, export and describe the network families below ``models/``."""
