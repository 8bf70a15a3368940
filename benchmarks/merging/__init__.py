"""Networks trained apart, merged by every policy under one pruner, one training and one accuracy rule."""
