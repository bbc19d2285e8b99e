"""The network: a Llama backbone over the KV pool, two visual pathways, two heads."""
