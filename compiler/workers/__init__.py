"""Work that may be done by several workers: jobs, what runs them, and a store of their results."""
