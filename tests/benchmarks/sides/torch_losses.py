"""The problems' losses in PyTorch as its users write them: functions of params and data, dicts by their leaves' paths.

Lookups of ratings are index_select, the fastest of what users write: embedding takes 2.5 times as long, in a loop.
"""

from __future__ import annotations

import torch
from torch.nn import functional

HEADS = 4  # of the transformer: the problem's default


def quadratic_bowl(p, d):
    return (d["x"] * p["x"] * p["x"]).sum()


def linear_regression(p, d):
    return 0.5 * ((d["X"] @ p["x"] - d["y"]) ** 2).mean()


def logistic_regression(p, d):
    return functional.softplus(-d["y"] * (d["X"] @ p["x"])).mean() + 0.5e-3 * (p["x"] * p["x"]).sum()


def mlp(p, d):
    hidden = torch.tanh(d["x"] @ p["0.w"] + p["0.b"])
    return functional.cross_entropy(hidden @ p["1.w"] + p["1.b"], d["y"])


def autoencoder(p, d):
    code = torch.tanh(d["x"] @ p["0.w"] + p["0.b"]) @ p["1.w"] + p["1.b"]
    x = torch.tanh(code @ p["2.w"] + p["2.b"]) @ p["3.w"] + p["3.b"]
    return functional.mse_loss(x, d["x"])


def cnn(p, d):
    x = d["x"].permute(0, 3, 1, 2)
    for name in ("first", "second"):
        w = p[f"{name}.w"].permute(3, 2, 0, 1)
        x = functional.pad(x, (0, 1, 0, 1))  # SAME, of an even size by stride 2
        x = torch.relu(functional.conv2d(x, w, p[f"{name}.b"], stride=2))
    x = x.permute(0, 2, 3, 1).flatten(1)
    return functional.cross_entropy(x @ p["dense.w"] + p["dense.b"], d["y"])


def transformer(p, d):
    tokens, width = d["tokens"], p["places"].shape[1]
    x = functional.embedding(tokens[:, :-1], p["embedding"]) + p["places"]

    def norm(x):
        return functional.layer_norm(x, (width,))

    def split(x):
        return x.unflatten(2, (HEADS, -1)).transpose(1, 2)

    for i in range(sum(name.endswith(".query") for name in p)):
        block = {name: p[f"blocks.{i}.{name}"] for name in ("query", "key", "value", "mix", "up", "down")}
        y = norm(x)
        q, k, v = (split(y @ block[name]) for name in ("query", "key", "value"))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + y.transpose(1, 2).flatten(2) @ block["mix"]
        x = x + functional.gelu(norm(x) @ block["up"], approximate="tanh") @ block["down"]
    logits = norm(x) @ p["embedding"].T
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def lstm(p, d):
    h = c = d["x"].new_zeros(len(d["x"]), len(p["state"]))
    for x in d["x"].unbind(1):
        gates = x @ p["input"] + h @ p["state"] + p["bias"]
        enter, forget, leave, new = gates.chunk(4, dim=1)
        c = torch.sigmoid(forget) * c + torch.sigmoid(enter) * torch.tanh(new)
        h = torch.sigmoid(leave) * torch.tanh(c)
    return functional.mse_loss(h @ p["out.w"] + p["out.b"], d["y"])


def matrix_factorisation(p, d):
    users, items = p["users"].index_select(0, d["user"]), p["items"].index_select(0, d["item"])
    return 0.5 * functional.mse_loss((users * items).sum(1), d["rating"])


LOSSES = {
    loss.__name__: loss
    for loss in (
        *(quadratic_bowl, linear_regression, logistic_regression, mlp),
        *(cnn, transformer, lstm, autoencoder, matrix_factorisation),
    )
}
