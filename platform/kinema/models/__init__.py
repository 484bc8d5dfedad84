"""Networks and what they predict: ViT encoder, masked autoencoder, targets, classifier, weights."""
