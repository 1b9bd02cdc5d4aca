"""The bundled demo model: `opus-v1-sm/` holds its weights and tokenizer, `deploy/demo-model/` how they were made."""
