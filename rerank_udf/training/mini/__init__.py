"""How the embedded model was made: from PyPI's multilingual-e5-small and retrieval sets to its trained layers."""
