#!/usr/bin/env python3
"""Questions to a folder of documents, with LangChain: BM25 finds the document, t6d answers from it.

    pip install langchain-openai rank-bm25
    clients/examples/rag_langchain.py --url http://127.0.0.1:8000/v1 "What colour is the Signs telescope?" ...

Without questions it asks those of the file, bench/data/template-documents.json, and counts. Nothing here is about t6d
but the address: the prompt only puts what stays the same, instruction and document, before what changes, the question,
and so every question after a document's first computes nothing but itself.
"""

import argparse
import collections
import json
import pathlib
import re

from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_openai import ChatOpenAI
from rank_bm25 import BM25Okapi

DOCUMENTS = pathlib.Path(__file__).resolve().parents[2] / "bench/data/template-documents.json"
PROMPT = ChatPromptTemplate.from_messages([
    ("system", "Answer the question from the document. Be short.\n\n{document}"),
    ("user", "{question}"),
])


def words(text):
    return re.findall(r"\w+", text.lower())


class Retriever:
    """The document that BM25 ranks first for a question."""

    def __init__(self, documents):
        self._documents = documents
        self._index = BM25Okapi([words(document) for document in documents])

    def __call__(self, question):
        return self._index.get_top_n(words(question), self._documents, n=1)[0]


def make_chain(documents, url, api_key, model):
    """question -> {"document", "question", "answer": a LangChain message}"""
    llm = ChatOpenAI(base_url=url, api_key=api_key, model=model, temperature=0, max_tokens=40)
    find = RunnableLambda(Retriever(documents))
    return {"question": RunnablePassthrough(), "document": find} | RunnablePassthrough.assign(answer=PROMPT | llm)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--model", default="t6-docqa-14m")
    parser.add_argument("--documents", type=pathlib.Path, default=DOCUMENTS, help="JSON: [{document, questions: [{question, answer}]}]")
    parser.add_argument("--first", type=int, default=20, help="of the file's documents, ask about so many")
    parser.add_argument("questions", nargs="*")
    arguments = parser.parse_args()

    entries = json.loads(arguments.documents.read_text())
    chain = make_chain([entry["document"] for entry in entries], arguments.url, arguments.api_key, arguments.model)
    asked = [(question, None, None) for question in arguments.questions] or [
        (each["question"], each["answer"], entry["document"]) for entry in entries[:arguments.first] for each in entry["questions"]]

    count = collections.Counter()
    for question, expected, document in asked:
        result = chain.invoke(question)
        answer, usage = result["answer"].content.strip(), result["answer"].usage_metadata
        prompt, cached = usage["input_tokens"], usage["input_token_details"].get("cache_read", 0)
        print(f"{question} {answer} ({cached} of {prompt} prompt tokens cached)")
        count.update(questions=1, found=result["document"] == document, right=answer == expected, prompt=prompt, cached=cached)
    print(f"{count['cached']} of {count['prompt']} prompt tokens came from the cache", end="")
    print("." if arguments.questions else
          f"; of {count['questions']} questions {count['found']} found their document, {count['right']} answers were exact.")


if __name__ == "__main__":
    main()
