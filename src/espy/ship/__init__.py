"""From a network to a deployed file, compared with the network before it is called done (torch)."""
