#!/usr/bin/env python3
"""Writes a tiny llama model with random weights as a GGUF file (version 3), for tests of a real engine.

What it says means nothing; that it takes time in proportion to its size, and one step a token, is all that
is wanted. The same arguments give the same file. Needs nothing but Python.
"""

import argparse
import array
import random
import struct

UINT32, FLOAT32, STRING, ARRAY, INT32 = 4, 6, 8, 9, 5  # types of metadata values
F32 = 0  # the only type of tensor here
ALIGNMENT = 32


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def scalar(kind, value):
    return text(value) if kind == STRING else struct.pack({UINT32: "<I", INT32: "<i", FLOAT32: "<f"}[kind], value)


def entry(key, kind, value):
    """One pair of metadata; a list becomes an array of `kind`."""
    if isinstance(value, list):
        head = struct.pack("<IIQ", ARRAY, kind, len(value))
        return text(key) + head + b"".join(scalar(kind, item) for item in value)
    return text(key) + struct.pack("<I", kind) + scalar(kind, value)


def vocabulary():
    """Three special tokens and one for each byte: (text, type) with the types of SentencePiece."""
    normal, unknown, control, byte = 1, 2, 3, 6
    tokens = [("<unk>", unknown), ("<s>", control), ("</s>", control)]
    tokens += [(f"<0x{value:02X}>", byte) for value in range(256)]
    # A space is spelled so; letters come whole, so that answers can be read.
    tokens += [("\u2581", normal)] + [(chr(value), normal) for value in range(ord("a"), ord("z") + 1)]
    return tokens


def metadata(args, tokens):
    return [
        entry("general.architecture", STRING, "llama"),
        entry("general.name", STRING, "tiny"),
        entry("general.alignment", UINT32, ALIGNMENT),
        entry("llama.context_length", UINT32, args.context),
        entry("llama.embedding_length", UINT32, args.dim),
        entry("llama.block_count", UINT32, args.layers),
        entry("llama.feed_forward_length", UINT32, 2 * args.dim),
        entry("llama.attention.head_count", UINT32, args.heads),
        entry("llama.attention.head_count_kv", UINT32, args.heads),
        entry("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        entry("llama.rope.dimension_count", UINT32, args.dim // args.heads),
        entry("llama.vocab_size", UINT32, len(tokens)),
        entry("tokenizer.ggml.model", STRING, "llama"),
        entry("tokenizer.ggml.tokens", STRING, [token for token, _ in tokens]),
        entry("tokenizer.ggml.scores", FLOAT32, [0.0] * len(tokens)),
        entry("tokenizer.ggml.token_type", INT32, [kind for _, kind in tokens]),
        entry("tokenizer.ggml.unknown_token_id", UINT32, 0),
        entry("tokenizer.ggml.bos_token_id", UINT32, 1),
        entry("tokenizer.ggml.eos_token_id", UINT32, 2),
        entry("tokenizer.chat_template", STRING, "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"),
    ]


def shapes(args, words):
    """Every tensor by name; the innermost dimension first."""
    dim, wide = args.dim, 2 * args.dim
    yield "token_embd.weight", (dim, words)
    for layer in range(args.layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", (dim,)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"{block}{name}.weight", (dim, dim)
        yield block + "ffn_norm.weight", (dim,)
        yield block + "ffn_gate.weight", (dim, wide)
        yield block + "ffn_up.weight", (dim, wide)
        yield block + "ffn_down.weight", (wide, dim)
    yield "output_norm.weight", (dim,)
    yield "output.weight", (dim, words)


def padding(length):
    return b"\0" * (-length % ALIGNMENT)


def values(name, shape, draw):
    """A norm's weights are ones; the rest is uniform, with a variance that keeps activations in range."""
    if len(shape) == 1:
        return array.array("f", [1.0]) * shape[0]
    spread = (3.0 / shape[0]) ** 0.5
    # A block of random numbers, repeated at an odd length: quick to make, and no two rows are equal.
    block = array.array("f", (draw.uniform(-spread, spread) for _ in range(4099)))
    count = shape[0] * shape[1]
    return (block * (count // len(block) + 1))[:count]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=8192)
    args = parser.parse_args()
    tokens = vocabulary()
    pairs = metadata(args, tokens)
    tensors = list(shapes(args, len(tokens)))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs)
    offset = 0
    for name, shape in tensors:
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, F32, offset)
        size = 4 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        offset += size + len(padding(size))
    draw = random.Random(1)
    with open(args.path, "wb") as out:
        out.write(head + padding(len(head)))
        for name, shape in tensors:
            data = values(name, shape, draw).tobytes()
            out.write(data + padding(len(data)))


if __name__ == "__main__":
    main()
