"""GRPO with entropy control: the trainer, its settings, its checkpoints and the ``train`` command."""
