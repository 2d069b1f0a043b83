"""Writes the small tokenizers of this folder and what Hugging Face makes of some texts and chats with them.

    pip install transformers==4.57.1 jinja2
    python make_goldens.py FILE...      (text to train the vocabularies on)
"""
import json
import pathlib
import random
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).parent
LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
                r"\s*[\r\n]+|\s+(?!\S)|\s+")

LLAMA3_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")

CHATML_TEMPLATE = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' and loop.first %}{% continue %}{% endif %}
    {%- if message.role == 'assistant' and '</think>' in message.content %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
    {%- else %}
        {%- set content = message.content %}
    {%- endif %}
    {%- if tools is not none %}{{ raise_exception('no tools here') }}{% endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

INST_TEMPLATE = """{% for message in messages %}
  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
  {% endif %}
  {% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}
  {% else %}
{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}
  {% endif %}
{% endfor %}"""

ALPHABET = sorted(set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:!?'\"()[]{}<>|/\\-_=+*&^%$#@~`\n▁"))


def specials(names):
    return [AddedToken(name, special=True, normalized=False) for name in names]


def llama3(files):
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train(files, trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                               show_progress=False))
    tokenizer.add_special_tokens(specials(["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                                           "<|end_header_id|>", "<|eot_id|>"]))
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)])])
    return tokenizer, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "chat_template": LLAMA3_TEMPLATE}


def chatml(files):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train(files, trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                               show_progress=False))
    tokenizer.add_special_tokens(specials(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]))
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return tokenizer, {"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>", "__type": "AddedToken"},
                       "chat_template": [{"name": "other", "template": "no"},
                                         {"name": "default", "template": CHATML_TEMPLATE}]}


def inst(files):
    """Llama-2's way: spaces as U+2581, bytes for what has no token, special tokens that look like markup."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    first = specials(["<unk>", "<s>", "</s>"]) + [AddedToken(f"<0x{b:02X}>", special=True) for b in range(256)]
    words = Tokenizer(models.BPE())
    words.normalizer = tokenizer.normalizer
    words.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    words.train(files, trainers.BpeTrainer(vocab_size=700, special_tokens=first, initial_alphabet=ALPHABET,
                                           limit_alphabet=len(ALPHABET), show_progress=False))
    trained = json.loads(words.to_str())["model"]
    tokenizer.model = models.BPE(vocab=trained["vocab"], merges=[tuple(m) for m in trained["merges"]],
                                 unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer.add_special_tokens(specials(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]))
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return tokenizer, {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}


def unigram(files):
    """Whole strings are looked up here, "</s>" too; and only a text's first word gets a prefix."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.train(files, trainers.UnigramTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"],
                                                   unk_token="<unk>", initial_alphabet=ALPHABET,
                                                   show_progress=False))
    return tokenizer, {"eos_token": "</s>",
                       "chat_template": "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>\n{% endfor %}"}


TEXTS = ["", " ", "Hello world", "  two  spaces \n\n\n and\ttabs  ", "été naïve 日本語 \U0001F600 e\u0301", "a\u0000b", "don't I'll 12345 x=1;",
         "\ufffd odd \U0010FFFF \u200b", "trailing ", "<b>HTML</b> & [brackets] | pipes"]
CHATS = [
    [("user", "When did it open?")],
    [("user", "  spaces around \n")],
    [("user", "")],
    [("system", "Be short.\n\nA document, with 14 words."), ("user", "What?")],
    [("user", "été \U0001F600 <b>x</b>"), ("assistant", " It is so. "), ("user", "Why \"so\"? \\n")],
    [("user", "a"), ("assistant", "<think>hm, hm</think>\n\nYes."), ("user", "b")],
    [("assistant", "first"), ("user", "second")],
]


def main():
    shipped = HERE.parents[2] / "models" / "t6-docqa-14m"
    made = {}
    for make in (llama3, chatml, inst, unigram):
        tokenizer, config = make(sys.argv[1:])
        folder = HERE / make.__name__
        folder.mkdir(exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
        if make is inst:
            (folder / "chat_template.jinja").write_text(INST_TEMPLATE)
        made[make.__name__] = folder
    made["shipped"] = shipped
    rng = random.Random(1)
    out = {}
    for name, folder in made.items():
        raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
        n = max(raw.get_vocab(with_added_tokens=True).values()) + 1
        config = json.loads((folder / "tokenizer_config.json").read_text())
        template = config["chat_template"] if "chat_template" in config else INST_TEMPLATE
        if isinstance(template, list):
            template = next(t["template"] for t in template if t["name"] == "default")
        tokens = {k: v["content"] if isinstance(v, dict) else v for k, v in config.items() if k.endswith("_token")}
        hf = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(folder / "tokenizer.json")), **tokens)
        entry = out[name] = {"n_tokens": n, "encode": [], "decode": [], "chat": []}
        for text in TEXTS:
            entry["encode"].append({"text": text, "ids": raw.encode(text, add_special_tokens=False).ids,
                                    "with_special": raw.encode(text, add_special_tokens=True).ids})
        for length in (1, 2, 7, 40):
            ids = [rng.randrange(n) for _ in range(length)]
            entry["decode"].append({"ids": ids, "text": raw.decode(ids, skip_special_tokens=True),
                                    "with_special": raw.decode(ids, skip_special_tokens=False)})
        for chat in CHATS:
            messages = [{"role": role, "content": content} for role, content in chat]
            for option in ("none", "add_generation_prompt", "continue_final_message"):
                case = {"messages": messages, "option": option}
                options = {} if option == "none" else {option: True}
                try:
                    case["text"] = hf.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
                    case["ids"] = hf.apply_chat_template(messages, chat_template=template, **options)
                except Exception as error:  # the template's own complaint
                    case["error"] = str(error)
                entry["chat"].append(case)
    (HERE / "golden.json").write_text(json.dumps(out, ensure_ascii=True, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
