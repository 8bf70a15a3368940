"""Generated networks and damaged files against the whole compiler; onnxruntime is the judge of numbers.

families.py and corpus.py make cases, stages.py takes one through every stage, nested.py through those of sparsity
levels, worker.py does so in a child that may crash or hang, minimise.py shrinks what failed, readers.py feeds
damaged bytes to everything that reads files.
"""
