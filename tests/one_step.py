"""The settings under which one step changes the weights by the gradient: plain SGD at rate 1, nothing drawn."""

GRADIENT = {
    "train.max_steps": 1,
    "train.dropout": 0.0,
    "train.learning_rate": 1.0,
    "train.lr_scheduler_type": "constant",
    "train.warmup_steps": 0.0,
    "train.weight_decay": 0.0,
    "train.max_grad_norm": 1e9,
    "train.optimizer": "sgd",
    "train.momentum": 0.0,
}
