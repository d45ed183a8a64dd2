"""Chat templates of the shapes that families of models have, written anew for the tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_trainer.data.chat import Conversation, Rendered
from finetune_trainer.data.template import ChatTemplate
from finetune_trainer.data.turn_ends import Stops
from tests.support.tokenizers import row

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Family:
    template: str
    special: tuple[str, ...]
    bos: str = "<s>"
    eos: str = "</s>"
    end: str = ""
    """What ends a turn of the assistant's; empty: `eos`."""

    def compiled(self) -> ChatTemplate:
        return ChatTemplate(self.template, {"bos_token": self.bos, "eos_token": self.eos})

    def render(self, messages: Messages) -> Rendered:
        [rendered] = self.renderings(messages)
        return rendered

    def renderings(self, messages: Messages) -> list[Rendered]:
        return Conversation(
            row(messages=messages), messages, None, self.compiled(), Stops(self.special, eos=self.eos, bos=self.bos)
        ).renderings()


ALTERNATE = (
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
)
CHATML_TURN = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
CHATML_ASKS = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TURNS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
SIDES = ("<|User|>", "<|Assistant|>", "<|end of sentence|>")
FORGETFUL = (
    "{{ bos_token }}{%- for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|end of sentence|>' }}"
    "{% else %}{{ m.content }}{% endif %}{%- endfor %}{%- if add_generation_prompt %}"
)
"""Reasoning is never written, not even that of the last answer."""

FAMILIES = {
    "ChatML": Family("{%- for m in messages %}" + CHATML_TURN + "{%- endfor %}" + CHATML_ASKS, IM, end="<|im_end|>"),
    "SmolLM2": Family(
        "{%- for m in messages %}{% if loop.first and m.role != 'system' %}"
        "{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}" + CHATML_TURN + "{%- endfor %}" + CHATML_ASKS,
        IM, end="<|im_end|>",
    ),
    "Llama 3": Family(
        "{{ bos_token }}{% set day = strftime_now('%d %b %Y') %}"
        "{% if messages[0].role == 'system' %}{% set told = messages[0].content | trim %}{% set rest = messages[1:] %}"
        "{% else %}{% set told = '' %}{% set rest = messages %}{% endif %}"
        "{{ '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + day + '\\n\\n' + told + '<|eot_id|>' }}"
        "{% for m in rest %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}"
        "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        HEADERS, bos="<|begin_of_text|>", end="<|eot_id|>",
    ),
    "Qwen 2.5": Family(
        "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are kind.<|im_end|>\\n' }}{% endif %}"
        "{%- for m in messages %}{% if m.role == 'tool' %}"
        "{{ '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}"
        "{% elif m.tool_calls %}{{ '<|im_start|>assistant' }}{% for call in m.tool_calls %}"
        "{{ '\\n<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}"
        "{% else %}" + CHATML_TURN + "{% endif %}{%- endfor %}" + CHATML_ASKS,
        IM, end="<|im_end|>",
    ),
    "Qwen 3": Family(
        "{%- set seen = namespace(asked=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set seen.asked = loop.index0 %}{% endif %}{% endfor %}"
        "{%- for m in messages %}{% if m.role == 'assistant' and loop.index0 > seen.asked %}"
        "{{ '<|im_start|>assistant\\n<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}"
        "{{ m.content + '<|im_end|>\\n' }}{% else %}" + CHATML_TURN + "{% endif %}{%- endfor %}" + CHATML_ASKS,
        IM, end="<|im_end|>",
    ),
    "Mistral": Family(
        "{{ bos_token }}{%- for m in messages %}" + ALTERNATE + "{% if m.role == 'user' %}"
        "{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{%- endfor %}",
        ("<s>", "</s>"),
    ),
    "Mistral with the system in the last question": Family(
        "{{ bos_token }}{%- set told = messages[0].content if messages[0].role == 'system' else '' %}"
        "{%- for m in (messages[1:] if told else messages) %}" + ALTERNATE + "{% if m.role == 'user' %}"
        "{{ '[INST] ' + (told + '\\n\\n' if told and loop.last else '') + m.content + '[/INST]' }}"
        "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{%- endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]"),
    ),
    "Llama 2": Family(
        "{%- set told = messages[0].content if messages[0].role == 'system' else '' %}"
        "{%- for m in (messages[1:] if told else messages) %}" + ALTERNATE + "{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' }}"
        "{% if loop.first and told %}{{ '<<SYS>>\\n' + told + '\\n<</SYS>>\\n\\n' }}{% endif %}"
        "{{ m.content.strip() + ' [/INST]' }}{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}"
        "{%- endfor %}",
        ("<s>", "</s>"),
    ),
    "Gemma": Family(
        "{{ bos_token }}"
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{%- for m in messages %}" + ALTERNATE + "{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        TURNS, bos="<bos>", eos="<eos>", end="<end_of_turn>",
    ),
    "Qwen 3.5": Family(
        "{%- for m in messages %}{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}"
        "{{ '<|im_start|>assistant\\n' }}{% if loop.last %}"
        "{{ '<think>\\n' + parts[0].split('<think>')[-1].strip() if parts[1:] else '<think>\\n' }}"
        "{{ '\\n</think>\\n\\n' }}{% endif %}"
        "{{ parts[-1].strip() + '<|im_end|>\\n' }}{% else %}" + CHATML_TURN + "{% endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}",
        IM, end="<|im_end|>",
    ),
    "Gemma 4": Family(
        "{{ bos_token }}{%- for m in messages %}{% set who = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<|turn>' + who + '\\n' }}{% if m.reasoning_content and loop.last %}"
        "{{ '<|channel>thought\\n' + m.reasoning_content + '\\n<channel|>' }}{% endif %}"
        "{{ m.content + '<turn|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ '<|turn>model\\n<|channel>thought\\n<channel|>' }}{% endif %}",
        ("<bos>", "<eos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>"), bos="<bos>", eos="<eos>", end="<turn|>",
    ),
    "Gemma 3": Family(
        "{{ bos_token }}{%- set told = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}"
        "{%- for m in (messages[1:] if told else messages) %}"
        "{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<start_of_turn>' + role + '\\n' + (told if loop.first else '') + m.content | trim + '<end_of_turn>\\n' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        TURNS, bos="<bos>", eos="<eos>", end="<end_of_turn>",
    ),
    "Phi 3": Family(
        "{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
        "{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
        ("<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"), eos="<|endoftext|>", end="<|end|>",
    ),
    "Vicuna": Family(
        "{{ bos_token }}{%- for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content.strip() + ' ' }}"
        "{% elif m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content.strip() + eos_token }}{% else %}"
        "{{ m.content + ' ' }}{% endif %}{%- endfor %}{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        ("<s>", "</s>"),
    ),
    "DeepSeek R1": Family(FORGETFUL + "{{ '<|Assistant|><think>\\n' }}{% endif %}", SIDES, end=SIDES[2]),
    "DeepSeek R1 of May": Family(FORGETFUL + "{{ '<|Assistant|>' }}{% endif %}", SIDES, end=SIDES[2]),
    "QwQ": Family(
        "{%- for m in messages %}{% if m.role == 'assistant' %}"
        "{{ '<|im_start|>assistant\\n' + m.content.split('</think>')[-1].lstrip('\\n') + '<|im_end|>\\n' }}"
        "{% else %}" + CHATML_TURN + "{% endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}",
        IM, end="<|im_end|>",
    ),
}  # fmt: skip


def turns(user: str, assistant: str, ask: str, *, before: str = "", always: bool = False) -> str:
    """A template of what it writes for a user's and for an assistant's turn, and of what asks for one."""
    asks = ask if always else "{%- if add_generation_prompt %}" + ask + "{% endif %}"
    return (
        before + "{%- for m in messages %}{% if m.role == 'user' %}" + user + "{% elif m.role == 'assistant' %}"
        + assistant + "{% else %}" + user.replace("user", "system").replace("User", "System")
        + "{% endif %}{%- endfor %}" + asks
    )  # fmt: skip


HEADER = "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
LLAMA_TURN = "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content + '<|eot_id|>' }}"
GLM = ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>", "<|endoftext|>")
GLM_TURNS = ("{{ '<|user|>\\n' + m.content }}", "{{ '<|assistant|>\\n' + m.content }}", "{{ '<|assistant|>\\n' }}")
ROLES = ("<|user|>", "<|assistant|>", "<|system|>")

FAMILIES |= {
    "Llama 3 that always asks": Family(
        turns(LLAMA_TURN, LLAMA_TURN, HEADER, before="{{ bos_token }}", always=True),
        HEADERS, bos="<|begin_of_text|>", eos="<|end_of_text|>", end="<|eot_id|>",
    ),
    "Llama 3 that always asks, ended by its eos": Family(
        turns(LLAMA_TURN, LLAMA_TURN, HEADER, before="{{ bos_token }}", always=True),
        HEADERS, bos="<|begin_of_text|>", eos="<|eot_id|>",
    ),
    "ChatML that always asks": Family(
        turns(CHATML_TURN, CHATML_TURN, "{{ '<|im_start|>assistant\\n' }}", always=True), IM, end="<|im_end|>"
    ),
    "roles of their own that always ask": Family(
        turns("{{ '<|user|>' + m.content + '<|end|>' }}", "{{ '<|assistant|>' + m.content + '<|end|>' }}",
              "{{ '<|assistant|>' }}", always=True), (*ROLES, "<|end|>"), end="<|end|>",
    ),
    "sides in words that always ask": Family(
        turns("{{ 'USER: ' + m.content + ' ' }}", "{{ 'ASSISTANT: ' + m.content + eos_token }}", "{{ 'ASSISTANT: ' }}",
              always=True), ("<s>", "</s>"),
    ),
    "ChatGLM": Family(turns(*GLM_TURNS, before="{{ '[gMASK]<sop>' }}"), GLM, eos="<|endoftext|>"),
    "ChatGLM that always asks": Family(
        turns(*GLM_TURNS, before="{{ '[gMASK]<sop>' }}", always=True), GLM, eos="<|endoftext|>"
    ),
    "Baichuan": Family(
        turns("{{ '<reserved_106>' + m.content }}", "{{ '<reserved_107>' + m.content }}", "{{ '<reserved_107>' }}"),
        ("<s>", "</s>", "<reserved_106>", "<reserved_107>"),
    ),
    "MiniCPM": Family(turns("{{ '<用户>' + m.content | trim }}", "{{ '<AI>' + m.content | trim }}", "{{ '<AI>' }}"),
                      ("<s>", "</s>")),
    "Solar": Family(
        turns("{{ '### User:\\n' + m.content + '\\n\\n' }}", "{{ '### Assistant:\\n' + m.content + '\\n\\n' }}",
              "{{ '### Assistant:\\n' }}"), ("<s>", "</s>"),
    ),
    "Nemotron": Family(
        turns("{{ '<extra_id_1>User\\n' + m.content + '\\n' }}", "{{ '<extra_id_1>Assistant\\n' + m.content + '\\n' }}",
              "{{ '<extra_id_1>Assistant\\n' }}"), ("<s>", "</s>", "<extra_id_0>", "<extra_id_1>"),
    ),
    "Alpaca": Family(
        turns("{{ '### Instruction:\\n' + m.content + '\\n\\n' }}",
              "{{ '### Response:\\n' + m.content + eos_token + '\\n\\n' }}", "{{ '### Response:\\n' }}"),
        ("<s>", "</s>"),
    ),
    "Zephyr": Family(
        turns("{{ '<|user|>\\n' + m.content + eos_token + '\\n' }}",
              "{{ '<|assistant|>\\n' + m.content + eos_token + '\\n' }}", "{{ '<|assistant|>\\n' }}"), ("<s>", "</s>"),
    ),
    "OLMo 2": Family(
        turns("{{ '<|user|>\\n' + m.content + '\\n' }}",
              "{{ '<|assistant|>\\n' + m.content + eos_token + ('' if loop.last else '\\n') }}",
              "{{ '<|assistant|>\\n' }}", before="{{ bos_token }}"),
        ("<|endoftext|>",), bos="<|endoftext|>", eos="<|endoftext|>",
    ),
    "Command R": Family(
        turns(*("{{ '<|START_OF_TURN_TOKEN|><|" + who + "_TOKEN|>' + m.content + '<|END_OF_TURN_TOKEN|>' }}"
                for who in ("USER", "CHATBOT")), "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}",
              before="{{ bos_token }}"),
        ("<BOS>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
        bos="<BOS>", end="<|END_OF_TURN_TOKEN|>",
    ),
    "Granite": Family(
        turns(*("{{ '<|start_of_role|>" + who + "<|end_of_role|>' + m.content + '<|end_of_text|>\\n' }}"
                for who in ("user", "assistant")), "{{ '<|start_of_role|>assistant<|end_of_role|>' }}"),
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"), eos="<|end_of_text|>",
    ),
    "gpt-oss": Family(
        turns("{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}",
              "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
              "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}",
              "{{ '<|start|>assistant' }}"),
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"), eos="<|return|>",
    ),
    "Phi 4": Family(
        turns(*("{{ '<|im_start|>" + who + "<|im_sep|>' + m.content + '<|im_end|>' }}"
                for who in ("user", "assistant")), "{{ '<|im_start|>assistant<|im_sep|>' }}"),
        (*IM, "<|im_sep|>"), end="<|im_end|>",
    ),
    "OpenChat": Family(
        turns(*("{{ 'GPT4 Correct " + who + ": ' + m.content + '<|end_of_turn|>' }}" for who in ("User", "Assistant")),
              "{{ 'GPT4 Correct Assistant:' }}", before="{{ bos_token }}"),
        ("<s>", "</s>", "<|end_of_turn|>"), end="<|end_of_turn|>",
    ),
    "Llama 2 that opens the next text": Family(
        turns("{{ '[INST] ' + m.content + ' [/INST]' }}", "{{ ' ' + m.content + ' ' + eos_token + bos_token }}", "",
              before="{{ bos_token }}"), ("<s>", "</s>"),
    ),
    "Jamba": Family(
        turns(*("{{ '<|bom|><|" + who + "|> ' + m.content + '<|eom|>' }}" for who in ("user", "assistant")),
              "{{ '<|bom|><|assistant|>' }}"), (*ROLES, "<|bom|>", "<|eom|>"), end="<|eom|>",
    ),
    "Kimi": Family(
        turns(*("{{ '<|im_" + who + "|>" + who + "<|im_middle|>' + m.content + '<|im_end|>' }}"
                for who in ("user", "assistant")), "{{ '<|im_assistant|>assistant<|im_middle|>' }}"),
        ("<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>"), end="<|im_end|>",
    ),
    "Hunyuan": Family(
        turns("{{ '<|startoftext|>' + m.content + '<|extra_0|>' }}", "{{ m.content + '<|eos|>' }}", ""),
        ("<|startoftext|>", "<|extra_0|>", "<|eos|>"), eos="<|eos|>",
    ),
    "DeepSeek V2": Family(
        turns("{{ 'User: ' + m.content + '\\n\\n' }}", "{{ 'Assistant: ' + m.content + eos_token }}",
              "{{ 'Assistant:' }}", before="{{ bos_token }}"), ("<s>", "</s>"),
    ),
    "EXAONE": Family(
        turns("{{ '[|user|]' + m.content + '\\n' }}", "{{ '[|assistant|]' + m.content + '[|endofturn|]\\n' }}",
              "{{ '[|assistant|]' }}"), ("[|user|]", "[|assistant|]", "[|endofturn|]"), end="[|endofturn|]",
    ),
    "marks that leave out the end": Family(
        turns(CHATML_TURN, "{{ '<|im_start|>assistant\\n' }}{% generation %}{{ m.content }}{% endgeneration %}"
              "{{ '<|im_end|>\\n' }}", "{{ '<|im_start|>assistant\\n' }}"), IM, end="<|im_end|>",
    ),
    "SmolLM3": Family(
        turns(CHATML_TURN, "{% generation %}{{ '<|im_start|>assistant\\n' + m.content + '<|im_end|>\\n' }}"
              "{% endgeneration %}", "{{ '<|im_start|>assistant\\n' }}"), IM, end="<|im_end|>",
    ),
    "marks and no end": Family(
        turns("{{ '<|user|>' + m.content }}", "{{ '<|assistant|>' }}{% generation %}{{ m.content }}{% endgeneration %}",
              "{{ '<|assistant|>' }}"), ROLES,
    ),
}  # fmt: skip

READS_ALL = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""A template that reads every key of a message."""
