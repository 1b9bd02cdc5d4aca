"""What clients of other servers' APIs ask beside generations: tokenizers and models, in those servers' shapes."""
