"""What counterscan is measured against: attribution methods on the shared classifier, and trivial maps. One file
each."""
