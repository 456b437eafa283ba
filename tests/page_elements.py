"""A page as tests read it."""

from html.parser import HTMLParser


class Elements(HTMLParser):
    """The elements of a page in their order, with their text."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append([tag, dict(attributes), ""])

    def handle_data(self, text):
        if self.found:
            self.found[-1][2] += text
