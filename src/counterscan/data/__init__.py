"""Files to tables and tensors: the study table, readers, geometry, the prepared store, splits, the phantom."""
