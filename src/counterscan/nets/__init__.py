"""Networks, and nothing else: modules that know neither data nor training."""
