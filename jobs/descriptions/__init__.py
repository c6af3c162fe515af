"""Captions of pictures and explanations of texts, from large models or from files: one seam, several engines.

settings.py             DescriptionSettings and EndpointSettings
engine.py               Request, Reply, Failure, and the protocol of an engine
prompts.py              the published prompts, and the task words of models without a chat template
replies.py              what a model wrote, as a reply or a failure
model_files.py          the files of a model in a bucket or a folder
pinning.py              the model that a job began with, which all its processes use
loading.py              the engine of the settings, and what is checked before one is loaded
pixels.py               the pixels that a processor of transformers may make of a picture
transformers_engine.py  a model of transformers in this process
endpoint_engine.py      an endpoint that speaks the API of OpenAI
chat_templates.py       the chat template of a model for vLLM: its form of messages, and whole prompts
vllm_rows.py            the rows of a job on their way through the stages of vLLM
vllm_engine.py          vLLM as stages of Ray Data
precomputed.py          entries of a file
left_out.py             in the place of an engine whose process died
probe.py                one description of a gray picture or a short text, before any work starts
"""
