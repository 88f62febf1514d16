"""How the embedded checkpoint is made, stage by stage; `scripts/train_embedded` runs it all."""
