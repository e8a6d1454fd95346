"""What a Hub does with adapters: generate images, run folders, train, evaluate, export. One module each."""
