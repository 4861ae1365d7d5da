"""Checks deliveries as a receiver does, by the package that Standard Webhooks gives out.

In: SECRET, and on standard input JSON: what arrived, each with its headers and its body. Out: one line of JSON: the type of each, or why
it is refused.
"""

import json
import os
import sys

from standardwebhooks import Webhook, WebhookVerificationError

webhook = Webhook(os.environ["SECRET"])
checked = []
for arrived in json.load(sys.stdin):
    try:
        checked.append(webhook.verify(arrived["body"], arrived["headers"])["type"])
    except WebhookVerificationError as error:
        checked.append(f"refused: {error}")
print(json.dumps(checked))
