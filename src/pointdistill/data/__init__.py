"""What exists on disk: meshes, sources, corpora, benchmarks. Knows nothing about learning."""
