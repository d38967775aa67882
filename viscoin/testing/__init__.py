"""What `test` measures: the classifier, the generator, the ensemble and its agreement with ground truth."""
