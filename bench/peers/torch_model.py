"""The pruning head in PyTorch, as its peers on cards (torch_head.py) and on the CPU (torch_cpu.py) run it."""

import math

import torch
import torch.nn.functional as F

LAMBDA = 0.1


class Head(torch.nn.Module):
    """Of hidden states [B, N, D] and text [B, T, E]: merged tokens, kept, nearest, counts, task map, saliency, embeddings.

    The weights are named as in a head file and converted to `kind`, in which the encoder's part is computed; scores are float32
    (float64 in the reference) whatever the type; tokens are merged in the type of the hidden states.
    """

    def __init__(self, shape, weights, kind, device):
        super().__init__()
        self.heads, self.keep, self.class_token = shape["heads"], shape["keep"], shape["class_token"]
        self.kind = kind
        self.score = torch.float64 if kind == torch.float64 else torch.float32
        # What all rows are multiplied with is one matrix.
        layers = ("q", "v") if self.class_token else ("q", "v", "k")
        joined = {f"in.{part}": torch.cat([weights[f"{layer}.{part}"] for layer in layers]) for part in ("weight", "bias")}
        for name, value in {**weights, **joined}.items():
            value = value.to(device=device, dtype=kind)
            self.register_parameter(name.replace(".", "_"), torch.nn.Parameter(value, requires_grad=False))

    def forward(self, hidden, text):
        heads, keep, score, first = self.heads, self.keep, self.score, int(self.class_token)
        batch, rows, width = hidden.shape
        size, task_keep = width // heads, (keep + 1) // 2

        def split(x):
            return x.unflatten(-1, (heads, size)).transpose(1, 2)

        x = F.layer_norm(hidden.to(self.kind), (width,), self.ln1_weight, self.ln1_bias, 1e-5)
        if self.class_token:
            # Only the class token's query meets the keys: its saliency needs x W_k^T q_cls, not k.
            q, v = F.linear(x, self.in_weight, self.in_bias).split(width, dim=-1)
            q, v = split(q), split(v)
            folded = torch.einsum("bhd,hdc->bhc", q[:, :, 0], self.k_weight.view(heads, size, width))
            scores = (folded @ x.transpose(1, 2)).to(score) * size**-0.5
            saliency = torch.softmax(scores, dim=-1).mean(dim=1)[:, 1:]
        else:
            q, v, k = F.linear(x, self.in_weight, self.in_bias).split(width, dim=-1)
            q, v, k = split(q), split(v), split(k)
            # The mean over the query rows, a block of rows at a time: N x N weights of all heads would not fit.
            saliency = torch.zeros(batch, rows, dtype=score, device=hidden.device)
            step = max(1, min(rows, (1 << 28) // (batch * heads * rows)))
            for begin in range(0, rows, step):
                scores = (q[:, :, begin : begin + step] @ k.transpose(2, 3)).to(score) * size**-0.5
                saliency = saliency + torch.softmax(scores, dim=-1).sum(dim=(1, 2))
            saliency = saliency / (heads * rows)
        attended = F.scaled_dot_product_attention(q, q, v).transpose(1, 2).reshape(batch, rows, width)
        attended = F.linear(attended, self.out_weight, self.out_bias)
        normal = F.layer_norm(attended, (width,), self.post_ln_weight, self.post_ln_bias, 1e-5)
        embeddings = F.normalize(F.linear(normal, self.visual_projection_weight).to(score), dim=-1, eps=1e-12)
        patches = embeddings[:, first:]
        centre = embeddings[:, 0] if self.class_token else F.normalize(embeddings.sum(dim=1), dim=-1, eps=1e-12)

        unit_text = F.normalize(text.to(score), dim=-1, eps=1e-12)
        count, length = patches.shape[1], unit_text.shape[1]
        m = patches @ unit_text.transpose(1, 2)
        alpha, beta = m[:, :, -1:], (unit_text @ centre.unsqueeze(-1)).transpose(1, 2)
        m_v = alpha * torch.softmax(LAMBDA * beta * m, dim=2) / count
        m_t = beta * torch.softmax(LAMBDA * alpha * m, dim=1) / length
        task = ((m_v + m_t) * m).mean(dim=2)

        by_task = task.topk(task_keep, dim=1).indices
        rest = saliency.scatter(1, by_task, -math.inf)
        by_saliency = rest.topk(keep - task_keep, dim=1).indices
        kept = torch.cat((by_task, by_saliency), dim=1).sort(dim=1).values

        features = hidden[:, first:]
        unit = F.normalize(features, dim=-1, eps=1e-6 if features.dtype == torch.float16 else 1e-12)
        index = kept.unsqueeze(-1).expand(-1, -1, width)
        nearest = (unit @ unit.gather(1, index).transpose(1, 2)).argmax(dim=2)
        nearest = nearest.scatter(1, kept, torch.arange(keep, device=hidden.device).expand(batch, -1))
        one_hot = (nearest.unsqueeze(1) == torch.arange(keep, device=hidden.device).unsqueeze(-1)).to(features.dtype)
        counts = one_hot.sum(dim=2, dtype=score)
        if count <= 2048:
            sums = one_hot @ features
        else:  # the product would cost more than the additions
            sums = torch.zeros(batch, keep, width, dtype=score, device=hidden.device)
            sums = sums.scatter_add(1, nearest.unsqueeze(-1).expand(-1, -1, width), features.to(score))
        return sums / counts.unsqueeze(-1), kept, nearest, counts, task, saliency, embeddings
