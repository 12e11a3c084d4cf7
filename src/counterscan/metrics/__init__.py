"""Pure functions on tensors. Import the module that holds what you measure: localisation, counterfactual,
classification, intervals; for explanations validity, faithfulness, stability, realism."""
