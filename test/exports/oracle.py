"""DeSAP's head in numpy and float64: what is kept of an image for a text. Written from the paper's equations alone."""

import numpy as np


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def layer_norm(x, weights, name, eps):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def heads_of(x, heads):
    """[N, D] to [H, N, dh]."""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


class Analysis:
    """What no text changes: embedding A_d [N, E], saliency [P], of hidden states [N, D] with a class token in row 0."""

    def __init__(self, hidden, weights, heads, eps):
        hidden = np.asarray(hidden, np.float64)
        weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
        normed = layer_norm(hidden, weights, "ln1", eps)
        q, k, v = (heads_of(linear(normed, weights, name), heads) for name in "qkv")
        scale = 1 / np.sqrt(q.shape[-1])
        # Eq. 2: queries attend to queries; heads side by side, then the output projection.
        context = (softmax(q @ q.transpose(0, 2, 1) * scale) @ v).transpose(1, 0, 2).reshape(hidden.shape)
        attended = layer_norm(linear(context, weights, "out"), weights, "post_ln", eps)
        embedding = unit(attended @ weights["visual_projection.weight"].T)
        self.patches = hidden[1:]
        self.embedding, self.image = embedding[1:], embedding[0]
        # Eq. 4: the class token's row of the plain attention, mean over heads.
        self.saliency = softmax(q[:, :1] @ k.transpose(0, 2, 1) * scale)[:, 0].mean(0)[1:]

    def task(self, text, strength=0.1):
        """Eq. 3 for text tokens [T, E], end of text last: task relevance [P]."""
        text = unit(np.asarray(text, np.float64))
        m = self.embedding @ text.T
        alpha, beta = self.embedding @ text[-1], text @ self.image
        visual = alpha[:, None] * softmax(strength * beta * m) / len(m)
        textual = beta * softmax(strength * alpha[:, None] * m, axis=0) / len(text)
        return ((visual + textual) * m).mean(1)

    def choose(self, text, keep):
        """Eq. 5 and merging: kept, source (0 task, 1 saliency), tokens [K, D], and by how much the closest decision fell."""
        task = self.task(text)
        by_task = int(np.floor(keep * 0.5 + 0.5))
        order = np.argsort(-task, kind="stable")
        first, rest = order[:by_task], order[by_task:]
        by_saliency = rest[np.argsort(-self.saliency[rest], kind="stable")]
        kept = np.sort(np.concatenate([first, by_saliency[: keep - by_task]]))
        source = np.array([0 if patch in first else 1 for patch in kept])
        margins = [gap(task[order], by_task), gap(self.saliency[by_saliency], keep - by_task)]
        cosine = unit(self.patches) @ unit(self.patches[kept]).T
        nearest = cosine.argmax(1)
        nearest[kept] = np.arange(keep)
        tokens = np.stack([self.patches[nearest == token].mean(0) for token in range(keep)])
        others = np.delete(np.arange(len(task)), kept)
        if keep > 1 and len(others):
            two = np.sort(cosine[others], axis=1)[:, -2:]
            margins.append((two[:, 1] - two[:, 0]).min())
        return kept, source, tokens, min(margins)


def gap(descending, cut):
    """Between the last score inside of a cut and the first outside, relative to the largest."""
    if cut in (0, len(descending)):
        return np.inf
    return (descending[cut - 1] - descending[cut]) / np.abs(descending).max()


MARGIN = 2e-4


def head_values(hidden, weights, heads, eps, embedding, keeps, seed):
    """Everything that a case of kind `head` expects, for the first random text that decides nothing by less than MARGIN."""
    analysis = Analysis(hidden, weights, heads, eps)
    for attempt in range(1000):
        text = np.random.default_rng([seed, attempt]).normal(size=(7, embedding)).astype(np.float32)
        chosen = {keep: analysis.choose(text, keep) for keep in keeps}
        if min(margin for *_, margin in chosen.values()) >= MARGIN:
            break
    else:
        raise ValueError("no text decides clearly: take another seed")
    values = {"text": text, "task": analysis.task(text), "saliency": analysis.saliency}
    for keep, (kept, source, tokens, _) in chosen.items():
        values |= {f"kept.{keep}": kept, f"source.{keep}": source, f"tokens.{keep}": tokens}
    return values
