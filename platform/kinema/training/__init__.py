"""Training: clips and masks in, weights out. Knows no Ray and no MLflow."""
