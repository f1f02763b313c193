"""Training: one loop (accelerate, EMA, exact resume, JSON-lines log), and what is trained with it.

Public: `prior.train_prior`, `tokenizer.train_tokenizer` and `finetuning.finetune_tokenizer`.
"""
