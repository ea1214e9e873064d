"""A small training that tests share: data, a net that has every kind of state, a call of fit."""

import numpy as np

import cnnx

IMAGES, BATCH = 22, 4  # the last batch of an epoch has two images
BATCHES = 6


def make_data(seed=0):
    """Three classes of 6x6 images, each with one bright row."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, IMAGES)
    x = rng.standard_normal((IMAGES, 1, 6, 6)).astype(np.float32)
    x[np.arange(IMAGES), 0, 2 * y] += 2
    return x, y


def make_net(seed=0):
    """Everything that has a state: weights, running statistics, random generators."""
    rng = np.random.default_rng(seed)
    body = cnnx.Sequential(cnnx.Conv2D(1, 4, 3, padding=1, rng=rng), cnnx.BatchNorm2D(4))
    return cnnx.Sequential(
        cnnx.Residual(body, cnnx.Conv2D(1, 4, 1, rng=rng)),
        cnnx.ReLU(),
        cnnx.Dropout(0.25, rng=rng),
        cnnx.MaxPool2D(2),
        cnnx.Flatten(),
        cnnx.Dropout(0.25, rng=7),
        cnnx.Dense(36, 3, rng=rng),
    )


def make_sgd():
    return cnnx.SGD(0.05, momentum=0.9, weight_decay=1e-3, nesterov=True)


def state_bytes(net):
    return {name: array.tobytes() for name, array in net.state_dict().items()}


def training(optimizer="sgd", net_seed=0, **changes):
    """A call of fit, ready to make: what is resumed must be called like this again."""
    x, y = make_data()
    opt = {"sgd": make_sgd, "adam": cnnx.Adam, "adamw": cnnx.AdamW}[optimizer]()
    options = {
        "epochs": 3,
        "batch_size": BATCH,
        "seed": 3,
        "optimizer": opt,
        "schedule": cnnx.CosineLR(opt, 3 * BATCHES, warmup=2),
        "validation": make_data(seed=1),
        "progress": False,
    }
    net = make_net(net_seed)
    options.update(changes)
    return net, lambda **more: cnnx.fit(net, x, y, **{**options, **more})
