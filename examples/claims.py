"""Three claims about attention, tried: each prints what came out, also where the claim does not hold as it is told.

    python examples/claims.py                                   a and b, in seconds
    python examples/claims.py --claim c --data DIR --seeds 10   c trains Transformers; --device cuda takes minutes

a  Dividing the scores by √D, and only that, keeps a standard deviation near 1 (Vaswani et al. 2017, footnote 4).
b  A sum with the same weight for every word cannot tell *not too shabby, bright* from *not too bright, shabby*.
c  Several heads overfit less than one head with as many parameters.

DIR holds rt-polarity/sentence_polarity.zip, the sentence polarity data set v1.0 (Pang & Lee 2005, CC BY 4.0); it is
also taken from the environment variable CLEARHEAD_DATA. docs/derivation.md tells where the claims come from.
"""

import argparse
import itertools
import os
import random
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.attention import SDPBackend, sdpa_kernel

from clearhead.attention import Mask, MultiHeadAttention, attend, attention_map
from clearhead.block import Block, FeedForward, pre_norm
from clearhead.positions import LearnedPositions

# ---------------------------------------------------------------- a: the scale

SCALES = {"none": lambda d: 1.0, "1/√D": lambda d: d**-0.5, "1/D": lambda d: 1 / d}


def measure_scale(d_head: int, scale: float, *, words: int = 64, seed: int = 0) -> dict[str, float]:
    """Return what `scale` does to random queries, keys and values of mean 0 and standard deviation 1.

    scores, output: standard deviations; peak: mean largest weight; alike: e^entropy, the number of equally weighted
    words that would be as spread out; slope: mean Frobenius norm of the softmax Jacobian diag(w) - w w^T; gradient,
    typical: standard deviation and median size of the gradient that reaches q from a random one of deviation 1.
    """
    generator = torch.Generator().manual_seed(seed)
    q, k, v, pull = (torch.randn(1, 16, words, d_head, generator=generator) for _ in range(4))
    q.requires_grad_()
    output = attend(q, k, v, scale=scale)
    (gradient,) = torch.autograd.grad(output, q, pull)
    with torch.no_grad():
        w = attention_map(q, k, scale=scale)
        squares = w.square().sum(-1)
        slope = (squares - 2 * w.pow(3).sum(-1) + squares.square()).clamp(min=0).sqrt()  # |diag(w) - w w^T|
        return {
            "scores": (scale * q @ k.transpose(-2, -1)).std().item(),
            "output": output.std().item(),
            "peak": w.amax(-1).mean().item(),
            "alike": torch.special.entr(w).sum(-1).exp().mean().item(),
            "slope": slope.mean().item(),
            "gradient": gradient.std().item(),
            "typical": gradient.abs().median().item(),
        }


def claim_a(sizes: Sequence[int] = (16, 64, 256, 1024), seeds: int = 3) -> dict[tuple[int, str], dict[str, float]]:
    """Print and return the measurements for every size and scale, mean over seeds."""
    print("a  64 words, q, k and v random with standard deviation 1; mean over", seeds, "seeds\n")
    print("                     std of   std of             words   softmax    gradient at q")
    print("      D   scale      scores   output    peak w   alike     slope     std   median")
    results = {}
    for d_head, (name, scale) in itertools.product(sizes, SCALES.items()):
        runs = [measure_scale(d_head, scale(d_head), seed=seed) for seed in range(seeds)]
        mean = results[d_head, name] = {key: sum(run[key] for run in runs) / seeds for key in runs[0]}
        print(
            f"   {d_head:>4}   {name:<5} {mean['scores']:>11.3f} {mean['output']:>8.3f} {mean['peak']:>9.3f} "
            f"{mean['alike']:>7.1f} {mean['slope']:>9.3f} {mean['gradient']:>7.3f} {mean['typical']:>8.1e}"
        )
    fresh = fresh_layer_std()
    print(f"""
   Scores: a standard deviation of 1 under 1/√D at every D, and under no other scale. For scores the claim holds.
   Outputs: it does not. A mix of independent values has a standard deviation of sqrt(Σ w²), near 1 only where softmax
   has collapsed onto one word, which is what happens without a scale. Under 1/√D it is the same at every D, but not 1.
   Gradients: without a scale the typical one vanishes as D grows, while a few, where two words nearly tie, explode.
   Under 1/D all shrink. Under 1/√D nothing here depends on D: that is what it buys.
   The claim assumes independent q and k of standard deviation 1. A fresh layer of 12 heads (nn.Linear's own initial
   weights, D = 32, inputs of standard deviation 1) starts with scaled scores of standard deviation {fresh:.2f}.""")
    return results


def fresh_layer_std(d_model: int = 384, n_heads: int = 12) -> float:
    """Return the standard deviation of the scaled scores of a layer as it is first made, on random inputs."""
    torch.manual_seed(0)
    attention, x = MultiHeadAttention(d_model, n_heads), torch.randn(64, d_model)
    with torch.no_grad():
        q, k = (proj(x).unflatten(-1, (n_heads, -1)).transpose(0, 1) for proj in (attention.q_proj, attention.k_proj))
        return (attention.scale * q @ k.transpose(-2, -1)).std().item()


def trained_layers(name: str, text: str) -> None:
    """Print the standard deviations inside a trained model, layer by layer, for one text."""
    from clearhead.checkpoints import find, load
    from clearhead.data.tokenizer import Tokenizer

    model = load(name)
    bert = getattr(model, "bert", model)
    inputs: list[Tensor] = []
    for block in bert.blocks:
        block.attention.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    with torch.no_grad():
        bert(torch.tensor([Tokenizer.load(find(name)).encode(text).ids]))
        print(f"\n   The trained layers of {name!r} on {text!r}; per query, mean over words and heads")
        print("   layer   std of scores   scaled   over D   largest w: none   1/√D    1/D")
        for i, (block, x) in enumerate(zip(bert.blocks, inputs)):
            q, k = (
                proj(x).unflatten(-1, (block.attention.n_heads, -1)).transpose(1, 2)
                for proj in (block.attention.q_proj, block.attention.k_proj)
            )
            d_head = block.attention.d_head
            std = (q @ k.transpose(-2, -1)).std(-1).mean().item()
            peaks = [attention_map(q, k, scale=scale(d_head)).amax(-1).mean().item() for scale in SCALES.values()]
            print(
                f"   {i:>5} {std:>15.2f} {std * d_head**-0.5:>8.2f} {std / d_head:>8.2f} "
                f"{peaks[0]:>17.2f} {peaks[1]:>6.2f} {peaks[2]:>6.2f}"
            )
    print("   A trained layer has learnt its weights under its own scale: its scores spread as its task needs them to.")


# ---------------------------------------------------------------- b: the naive sum

BAD = "shabby dull slow weak bland clumsy muddled noisy stale grim cheap tedious".split()
GOOD = "bright quick clear warm witty fresh tender sharp lively brave honest gentle".split()
NOUNS = "attention plot acting music camera ending".split()
VOCABULARY = [*BAD, *GOOD, *NOUNS, "is", "not", "too", "and"]


def pairings(bad: str, good: str, nouns: tuple[str, str]) -> list[tuple[str, int]]:
    """Return four sentences with the very same words: two praise, two complain, by what *not* belongs to."""
    one, other = nouns
    return [
        (f"{one} is not too {bad} and {other} is {good}", 1),
        (f"{other} is {good} and {one} is not too {bad}", 1),
        (f"{one} is not too {good} and {other} is {bad}", 0),
        (f"{other} is {bad} and {one} is not too {good}", 0),
    ]


class Reader(nn.Module):
    """Word and position vectors, their mixture, one hidden layer, a verdict. Only the mixture differs."""

    def __init__(self, *, attentive: bool, ordered: bool, d_model: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(len(VOCABULARY), d_model)
        self.positions = LearnedPositions(16, d_model) if ordered else None
        self.attention = MultiHeadAttention(d_model, n_heads=4)
        self.verdict = nn.Sequential(nn.Linear(d_model, 64), nn.ReLU(), nn.Linear(64, 1))
        self.attentive = attentive

    def forward(self, tokens: Tensor) -> Tensor:
        """Return one score a text, positive for praise."""
        x = self.words(tokens)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1]))
        naive = self.attention.v_proj(x).mean(1, keepdim=True)  # step 3 of the derivation
        mixed = self.attention(x) if self.attentive else self.attention.out_proj(naive)
        return self.verdict(mixed.mean(1)).squeeze(-1)


def read_pairings(seed: int, *, attentive: bool, ordered: bool, steps: int) -> float:
    """Train a Reader on three quarters of the adjective pairs; return its accuracy on the others."""
    torch.manual_seed(seed)
    pairs = list(itertools.product(BAD, GOOD))
    random.Random(seed).shuffle(pairs)
    index = {word: i for i, word in enumerate(VOCABULARY)}

    def tensors(pairs: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
        rows = [row for pair in pairs for nouns in itertools.permutations(NOUNS, 2) for row in pairings(*pair, nouns)]
        tokens = torch.tensor([[index[word] for word in text.split()] for text, _ in rows])
        return tokens, torch.tensor([float(label) for _, label in rows])

    (tokens, labels), (unseen, truth) = tensors(pairs[:108]), tensors(pairs[108:])
    reader = Reader(attentive=attentive, ordered=ordered)
    optimizer = torch.optim.Adam(reader.parameters(), lr=3e-3)
    for _ in range(steps):
        batch = torch.randint(len(tokens), (128,))
        loss = F.binary_cross_entropy_with_logits(reader(tokens[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return ((reader(unseen) > 0) == truth.bool()).float().mean().item()


def claim_b(seeds: int = 3, steps: int = 200) -> dict[str, list[float]]:
    """Print and return the accuracies on unseen pairs of adjectives, one a seed."""
    print("b  the same words, paired differently; same vectors, same values, same verdict; only the mixture differs\n")
    for text, label in pairings("shabby", "bright", ("attention", "plot")):
        print(f"   {'praise   ' if label else 'complaint'}  {text}")
    torch.manual_seed(0)
    x = torch.randn(1, 10, 32)
    attention = MultiHeadAttention(32, 4)
    with torch.no_grad():
        v = attention.v_proj(x)
        moved = (v.mean(1) - v[:, torch.randperm(10)].mean(1)).abs().max().item()
    print(f"\n   moving the words changes their naive sum by at most {moved:.0e}: rounding")
    readers = {"naive sum": (False, True), "attention": (True, True), "attention, no positions": (True, False)}
    print(f"\n   {'accuracy on unseen pairs of adjectives':<40}", *(f"seed {seed}" for seed in range(seeds)))
    results = {}
    for name, (attentive, ordered) in readers.items():
        runs = [read_pairings(seed, attentive=attentive, ordered=ordered, steps=steps) for seed in range(seeds)]
        results[name] = runs
        print(f"   {name:<40}", "  ".join(f"{accuracy:.3f}" for accuracy in runs))
    print("""
   The naive sum is at chance although it is given the positions too: they add up to the same in every order.
   Attention solves it, because the shares depend on both words; not told the order, it is at chance as well.""")
    return results


# ---------------------------------------------------------------- c: several heads


def read_sentences(folder: Path) -> tuple[list[list[str]], Tensor]:
    """Return the sentences of rt-polarity as words, and which of them praise."""
    with zipfile.ZipFile(folder / "rt-polarity" / "sentence_polarity.zip") as archive:
        sides = [
            archive.read(f"sentence_polarity/rt-polarity.{side}").decode("latin-1").splitlines()
            for side in ("neg", "pos")
        ]
    sentences = [line.split() for side in sides for line in side]
    return sentences, torch.tensor([0] * len(sides[0]) + [1] * len(sides[1]))


def as_tokens(sentences: list[list[str]], max_len: int, at_least: int = 3) -> tuple[Tensor, Tensor, int]:
    """Return token ids (0 pads, 1 is any word seen fewer than `at_least` times), lengths, and the vocabulary's size."""
    counts = Counter(itertools.chain.from_iterable(sentences))
    index = {word: i for i, word in enumerate((w for w, n in counts.most_common() if n >= at_least), 2)}
    rows = [[index.get(word, 1) for word in sentence[:max_len]] for sentence in sentences]
    tokens = torch.tensor([row + [0] * (max_len - len(row)) for row in rows])
    return tokens, torch.tensor([len(row) for row in rows]), len(index) + 2


class SmallTransformer(nn.Module):
    """Words and positions, two pre-norm blocks, the mean over words, a verdict; more heads add no parameter."""

    def __init__(self, vocab_size: int, max_len: int, n_heads: int, d_model: int = 128, dropout: float = 0.1) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(vocab_size, d_model), LearnedPositions(max_len, d_model)
        nn.init.normal_(self.words.weight, std=0.1)
        nn.init.normal_(self.positions.weight, std=0.1)
        self.blocks = nn.ModuleList(
            Block(
                MultiHeadAttention(d_model, n_heads, dropout=dropout),
                FeedForward(d_model, 2 * d_model),
                norm=lambda: nn.LayerNorm(d_model),
                residual=pre_norm,
                dropout=dropout,
            )
            for _ in range(2)
        )
        self.norm, self.verdict = nn.LayerNorm(d_model), nn.Linear(d_model, 2)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return two scores a text: complaint, praise."""
        x = self.words(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x, mask=Mask(key_lengths=lengths))
        inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        return self.verdict((self.norm(x) * inside.unsqueeze(-1)).sum(1) / lengths[:, None])


class Ensemble:
    """As many Transformers as seeds, trained side by side in one vectorised call; they differ in everything random."""

    def __init__(self, models: Sequence[nn.Module], device: torch.device) -> None:
        self.skeleton = models[0]
        stacked, _ = stack_module_state([model.to(device) for model in models])
        self.parameters = {name: tensor.detach().requires_grad_() for name, tensor in stacked.items()}

    def __call__(self, tokens: Tensor, lengths: Tensor, *, training: bool) -> Tensor:
        """Return scores `(seed, batch, 2)` for tokens `(seed, batch, time)`."""
        self.skeleton.train(training)

        def one(parameters: dict[str, Tensor], tokens: Tensor, lengths: Tensor) -> Tensor:
            return functional_call(self.skeleton, parameters, (tokens, lengths))

        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be vectorised over models
            return torch.vmap(one, randomness="different")(self.parameters, tokens, lengths)


def train_heads(
    n_heads: int, data: tuple[Tensor, Tensor, Tensor, int], seeds: int, epochs: int, device: torch.device
) -> dict[str, Tensor]:
    """Train one model a seed; return loss and accuracy after every epoch, `(epochs, seeds)`, in training and held out.

    A seed fixes the split (four fifths for training), the initial weights and the order of batches, so models with
    another number of heads and the same seed start from the same numbers and see the same texts.
    """
    tokens, lengths, labels = (tensor.to(device) for tensor in data[:3])
    splits, models = [], []
    for seed in range(seeds):
        torch.manual_seed(seed)
        splits.append(torch.randperm(len(tokens)))
        models.append(SmallTransformer(data[3], tokens.shape[1], n_heads))
    order = torch.stack(splits).to(device)
    ours, others = order.split([len(tokens) * 4 // 5, len(tokens) - len(tokens) * 4 // 5], dim=1)
    ensemble = Ensemble(models, device)
    optimizer = torch.optim.AdamW(ensemble.parameters.values(), lr=1e-3, weight_decay=0.01)
    shuffle = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    history: dict[str, list[Tensor]] = {name: [] for name in ("loss", "held-out loss", "accuracy", "held-out accuracy")}
    for _ in range(epochs):
        for batch in ours[:, torch.randperm(ours.shape[1], generator=shuffle).to(device)].split(64, dim=1):
            scores = ensemble(tokens[batch], lengths[batch], training=True)
            loss = F.cross_entropy(scores.flatten(0, 1), labels[batch].flatten(), reduction="sum") / batch.shape[1]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for prefix, rows in (("", ours), ("held-out ", others)):
            with torch.no_grad():
                scores = torch.cat([ensemble(tokens[b], lengths[b], training=False) for b in rows.split(512, dim=1)], 1)
                losses = F.cross_entropy(scores.flatten(0, 1), labels[rows].flatten(), reduction="none")
                history[f"{prefix}loss"].append(losses.view(rows.shape).mean(1).cpu())
                history[f"{prefix}accuracy"].append((scores.argmax(-1) == labels[rows]).float().mean(1).cpu())
    return {name: torch.stack(values) for name, values in history.items()}


def sign_flip_p(differences: Tensor) -> float:
    """Return the p-value of paired differences: how often random signs move their mean as far from 0 (exact)."""
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(differences))))
    means = (signs * differences).mean(1).abs()
    return (means >= differences.mean().abs() - 1e-12).float().mean().item()


def claim_c(folder: Path, seeds: int = 10, epochs: int = 12, device: str = "cpu") -> dict[int, dict[str, Tensor]]:
    """Print and return training and held-out figures for 1, 2, 4 and 8 heads with as many parameters."""
    sentences, labels = read_sentences(folder)
    tokens, lengths, vocab_size = as_tokens(sentences, max_len=48)
    size = sum(parameter.numel() for parameter in SmallTransformer(vocab_size, 48, 1).parameters())
    print(f"c  {len(sentences)} sentences, four fifths for training; {size:,} parameters whatever the heads")
    print(f"   {seeds} seeds, {epochs} epochs; mean ± standard deviation; p by paired sign flips against 1 head\n")
    columns = ("best held-out", "last held-out", "gap in accuracy", "gap in loss")
    print("   heads", *(f"{column:>16} {'p':>6}" for column in columns))
    results: dict[int, dict[str, Tensor]] = {}
    for n_heads in (1, 2, 4, 8):
        run = train_heads(n_heads, (tokens, lengths, labels, vocab_size), seeds, epochs, torch.device(device))
        held_out = run["held-out accuracy"]
        values = (
            held_out.amax(0),
            held_out[-1],
            run["accuracy"][-1] - held_out[-1],
            (run["held-out loss"] - run["loss"])[-1],
        )
        results[n_heads] = dict(zip(columns, values))
        print(f"   {n_heads:>5}", *(_cell(results, n_heads, column) for column in columns), flush=True)
    print("""
   best: over epochs, chosen on the held-out texts themselves, so a little flattering to all alike. gap: training minus
   held-out accuracy, held-out minus training loss, after the last epoch: what one calls overfitting. A smaller gap
   alone is not better; read it beside the held-out accuracy.""")
    return results


def _cell(results: dict[int, dict[str, Tensor]], n_heads: int, column: str) -> str:
    ours, one = results[n_heads][column], results[1][column]
    p = f"{sign_flip_p(ours - one):.3f}" if n_heads > 1 else ""
    return f"{ours.mean():>7.3f} ± {ours.std(correction=len(ours) > 1):.3f} {p:>7}"


def main() -> None:
    """Try the claims that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claim", choices=("a", "b", "c"), help="one of them; a and b where not given")
    parser.add_argument("--seeds", type=int, help="repetitions: 3 for a and b, 10 for c where not given")
    parser.add_argument("--epochs", type=int, default=12, help="of claim c")
    parser.add_argument("--device", default="cpu", help="of claim c: cpu or cuda")
    parser.add_argument("--data", type=Path, default=os.environ.get("CLEARHEAD_DATA"), help="folder of claim c's texts")
    parser.add_argument(
        "--model", help="claim a also measures this trained model: a default's name, a folder, a hub name"
    )
    chosen = parser.parse_args()
    if chosen.claim in ("a", None):
        claim_a(seeds=chosen.seeds or 3)
        if chosen.model:
            trained_layers(chosen.model, "attention is not too shabby")
        print()
    if chosen.claim in ("b", None):
        claim_b(seeds=chosen.seeds or 3)
    if chosen.claim == "c":
        if chosen.data is None:
            sys.exit("claims.py: claim c needs --data DIR or CLEARHEAD_DATA, see --help")
        claim_c(chosen.data, seeds=chosen.seeds or 10, epochs=chosen.epochs, device=chosen.device)
    if chosen.claim is None:
        print("\nc  not tried: it trains Transformers on real texts; see --help")


if __name__ == "__main__":
    main()
