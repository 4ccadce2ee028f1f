"""Networks without trained weights, through edge-quantize and edge-infer: see `../run`."""
