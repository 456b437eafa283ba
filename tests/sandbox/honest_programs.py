"""An honest program with classes, named tuples, containers and the like, and tests that plain Python lets pass."""

PROGRAM = '''
import collections, enum
from dataclasses import dataclass
from typing import NamedTuple

class Vector:
    """Numbers."""
    def __init__(self, *x): self.x, self.log = list(x), []
    def __add__(self, other): return Vector(*[a + b for a, b in zip(self.x, other.x)])
    def __sub__(self, other): return Vector(*[a - b for a, b in zip(self.x, other.x)])
    def __mul__(self, k): return Vector(*[a * k for a in self.x])
    __rmul__ = __mul__
    def __matmul__(self, other): return sum(a * b for a, b in zip(self.x, other.x))
    def __neg__(self): return Vector(*[-a for a in self.x])
    def __abs__(self): return sum(a * a for a in self.x) ** 0.5
    def __eq__(self, other): return isinstance(other, Vector) and self.x == other.x
    def __hash__(self): return hash(tuple(self.x))
    def __lt__(self, other): return self.x < other.x
    def __getitem__(self, key): return self.x[key]
    def __setitem__(self, key, value): self.x[key] = value
    def __delitem__(self, key): del self.x[key]
    def __len__(self): return len(self.x)
    def __iter__(self): return iter(self.x)
    def __str__(self): return "V" + str(tuple(self.x))
    def __enter__(self): self.log.append("in"); return self
    def __exit__(self, *error): self.log.append("out"); return False
    def push(self, value): self.x.append(value)

class Point(NamedTuple):
    x: int
    y: int = 0
    def norm(self): return self.x + self.y

Pair = collections.namedtuple("Pair", "a b")
class Color(enum.Enum): RED = 1; BLUE = 2
class Level(enum.IntEnum): LOW = 1; HIGH = 2
class Stack(list):
    def push(self, value): self.append(value)
    def peek(self): return self[-1]
@dataclass(order=True)
class Record:
    n: int = 0
class Odd(ValueError): pass
class Odder(Odd):
    def __init__(self, code): super().__init__("odd"); self.code = code
class Quiet:
    value = 1
    def __enter__(self): return self
    def __exit__(self, *error): return True
store = []
def same(value): return value
def counts(text): return collections.Counter(text)
def groups():
    made = collections.defaultdict(list)
    made[1].append(2)
    return made
def ordered(): return collections.OrderedDict([(1, 2), (3, 4)])
def refuse(): raise Odder(7)
def keep(value): store.append(value); return store
def grow(): store[0].append(99)
def total(values): return sum(values)
def numbers(): yield from range(5)
def ring():
    made = [1]
    made.append(made)
    return made
def grid(n): return [[0] * n for _ in range(n)]
def fill(rows):
    for row in rows:
        for n in range(len(row)): row[n] += 1
def first(queue): queue.appendleft(1)
def depth(node): return 0 if node is None else 1 + max(depth(node.left), depth(node.right))
def rename(node): node.value = 5; node.items.append(1)
def half(n):
    from fractions import Fraction
    return Fraction(n, 2)
def power(n): return 2 ** n
def square(n): return n * n
def squares(n):
    import multiprocessing
    with multiprocessing.Pool() as pool: return pool.map(square, range(n))
def squares_again(n):
    from concurrent.futures import ProcessPoolExecutor
    with ProcessPoolExecutor(2) as pool: return list(pool.map(square, range(n)))
def shared(n):
    import multiprocessing
    value = multiprocessing.Value("i", 0)
    def work():
        with value.get_lock(): value.value += 1
    ones = [multiprocessing.Process(target=work) for _ in range(n)]
    for one in ones: one.start()
    for one in ones: one.join()
    return value.value
def later(n):
    import asyncio
    async def wait():
        await asyncio.sleep(0)
        return n
    return asyncio.run(wait())
'''
TESTS = {
    "sum": "assert Vector(1, 2) + Vector(3, 4) == Vector(4, 6)",
    "difference": "assert Vector(3) - Vector(1) == Vector(2)",
    "product with a number": "assert Vector(1) * 2 == 2 * Vector(1) and (Vector(1) * 2).x == [2]",
    "product of two": "assert Vector(1, 2) @ Vector(3, 4) == 11",
    "sign and size": "assert (-Vector(1)).x == [-1] and abs(Vector(3, 4)) == 5 and abs(Vector(3, 4) * 2) == 10",
    "in place": "v = Vector(1)\nv += Vector(2)\nassert v == Vector(3)",
    "order": "assert Vector(1) < Vector(2) and not Vector(2) < Vector(1)",
    "sorted": "assert sorted([Vector(2), Vector(1)]) == [Vector(1), Vector(2)]",
    "largest": "assert max(Record(1), Record(3)).n == 3 and Record(1) == Record(1) and Record(1) <= Record(2)",
    "slice": "v = Vector(1, 2, 3)\nassert v[1:] == [2, 3] and v[0] == 1 and v[::2] == [1, 3]",
    "assigned and deleted items": "v = Vector(1, 2, 3)\nv[1:] = [5]\ndel v[0]\nassert v.x == [5]",
    "attributes": "v = Vector()\nv.y = 1\nassert v.y == 1\ndel v.log\nassert not hasattr(v, 'log')",
    "with": "with Vector(1) as v:\n    v.push(2)\nassert v.log == ['in', 'out'] and v.x == [1, 2]",
    "with that swallows": "with Quiet() as q:\n    raise ValueError('of the test')\nassert q.value == 1",
    "containment": "assert 2 in Vector(1, 2) and 5 not in Vector(1)",
    "iteration": "assert list(Vector(1, 2)) == [1, 2] and [*reversed(Vector(1, 2))] == [2, 1] and len(Vector(1)) == 1",
    "text": "assert str(Vector(1, 2)) == 'V(1, 2)' and f'{Vector(1)}' == 'V(1,)' and Vector.__doc__ == 'Numbers.'",
    "set of objects": "assert Vector(1) in {Vector(1)} and len({Vector(1), Vector(1), Vector(2)}) == 2",
    "key": "assert {Vector(1): 'a'}[Vector(1)] == 'a'",
    "change through an attribute": "v = Vector()\nv.x.append(3)\nassert v.x == [3]\nv.push(4)\nassert v.x == [3, 4]",
    "a list kept and changed": "a = [1]\nkeep(a)\ngrow()\nassert a == [1, 99] and keep(2)[0] is a",
    "nested lists": "g = grid(3)\nfill(g)\nassert g == [[1] * 3] * 3 and g[0] is not g[1]",
    "deque": "from collections import deque\nq = deque([2])\nfirst(q)\nassert q == deque([1, 2])",
    "ring": "a = ring()\nassert a[1] is a and a[0] == 1",
    "identity of a list": "a = [1]\nassert same(a) is a and same([1]) is not a",
    "identity of an object": "v = Vector(1)\nassert same(v) is v and Vector(1) is not v",
    "named tuple": (
        "p = same(Point(1, 2))\nassert p.x == 1 and p == (1, 2) and p.norm() == 3 and p._replace(x=5).x == 5"
    ),
    "collections.namedtuple": "q = Pair(1, b=2)\na, b = q\nassert q.b == b == 2 and q._asdict() == {'a': 1, 'b': 2}",
    "enum": (
        "assert Color.RED is Color.RED and Color(1) == Color.RED and "
        "Color.RED != Color.BLUE and Color['RED'].value == 1"
    ),
    "int enum": "assert Level.LOW == 1 and Level.HIGH > Level.LOW and Level.LOW.name == 'LOW'",
    "subclass of list": (
        "s = Stack()\ns.push(1)\ns.append(2)\nassert s == [1, 2] and s.peek() == 2 and isinstance(s, Stack)"
    ),
    "Counter": (
        "c = counts('aab')\nassert c.most_common(1) == [('a', 2)] and c['z'] == 0\nc.update('b')\nassert c['b'] == 2"
    ),
    "sum of Counters": "assert counts('ab') + counts('b') == {'a': 1, 'b': 2}",
    "defaultdict": "d = groups()\nd[5].append(1)\nassert d == {1: [2], 5: [1]}",
    "OrderedDict": "o = ordered()\no.move_to_end(1)\nassert list(o) == [3, 1]",
    "own exception": (
        "try:\n    refuse()\nexcept Odd as e:\n    assert e.code == 7 and str(e) == 'odd'\nelse:\n    assert 0"
    ),
    "iterators handed in": (
        "assert total(i for i in [1, 2]) == 3 and total(iter([3])) == 3 and total(map(int, '12')) == 3"
    ),
    "generator": "g = numbers()\nassert next(g) == 0 and list(g) == [1, 2, 3, 4]",
    "class of the test": """
class Node:
    def __init__(self, value, left=None, right=None):
        self.value, self.left, self.right, self.items = value, left, right, []
node = Node(1, Node(2))
assert depth(node) == 2
rename(node)
assert node.value == 5 and node.items == [1]""",
    "imports the program": "from solution import Vector as V\nimport solution\nassert V(1) == solution.Vector(1)",
    "unittest": """
import io, unittest
class Case(unittest.TestCase):
    def test(self):
        self.assertEqual(total([1]), 1)
        self.assertRaises(Odd, refuse)
result = unittest.TextTestRunner(stream=io.StringIO()).run(unittest.defaultTestLoader.loadTestsFromTestCase(Case))
assert result.wasSuccessful() and result.testsRun == 1""",
    "fraction": "assert half(1) == 0.5",
    "fraction in a test": "from fractions import Fraction\nassert half(1) == Fraction(1, 2) and half(1) + 1 == 1.5",
    "long number": f"assert power(4000) == {2**4000}",
    "named tuple as a tuple": "assert Point(1, 2) == (1, 2)",
    "Counter as a dict": "assert counts('aab') == {'b': 1, 'a': 2}",
    "Pool": "assert squares(4) == [0, 1, 4, 9]",
    "ProcessPoolExecutor": "assert squares_again(4) == [0, 1, 4, 9]",
    "shared value of processes": "assert shared(3) == 3",
    "asyncio": "assert later(3) == 3",
}
# Right in plain Python, and refused where a test is judged outside the program's process.
INSIDE_ALONE = {
    "signature": "import inspect\nassert str(inspect.signature(total)) == '(values)'",
    "subclass of a class of the program": "class Mine(Vector): pass\nassert Mine(1).x == [1]",
    "copy": "import copy\nassert copy.deepcopy(Vector(1)).x == [1]",
    "dataclass as a dict": "import dataclasses\nassert dataclasses.asdict(Record(1)) == {'n': 1}",
    "type": "assert type(Vector(1)) is Vector",
}
SCRIPTS = {
    "input": "n = int(input())\nprint(sum(int(input()) for _ in range(n)))",
    "sys.stdin": "import sys\nvalues = sys.stdin.read().split()\nprint(sum(map(int, values[1:])))",
    "sys.stdin.buffer": "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split()[1:])))",
    "lines": "import sys\nlines = iter(sys.stdin)\nnext(lines)\nprint(sum(map(int, lines)))",
    "descriptor 0": "print(sum(map(int, open(0).read().split()[1:])))",
    "os.read": "import os\nprint(sum(map(int, os.read(0, 1000).split()[1:])))",
    "/dev/stdin": "print(sum(map(int, open('/dev/stdin').read().split()[1:])))",
    "main": (
        "def main():\n    n = int(input())\n    print(sum(int(input()) for _ in range(n)))\n"
        "if __name__ == '__main__':\n    main()"
    ),
    "exit": "n = int(input())\nprint(sum(int(input()) for _ in range(n)))\nexit()",
    "sys.exit": "import sys\nn = int(input())\nsys.stdout.write(str(sum(int(input()) for _ in range(n))))\nsys.exit(0)",
    "os._exit": "import os\nn = int(input())\nprint(sum(int(input()) for _ in range(n)), flush=True)\nos._exit(0)",
    "at exit": "import atexit\nn = int(input())\natexit.register(print, sum(int(input()) for _ in range(n)))",
    "thread": (
        "import sys, threading\nthreading.stack_size(1 << 26)\nsys.setrecursionlimit(10 ** 6)\ndef main():\n"
        "    n = int(input())\n    print(sum(int(input()) for _ in range(n)))\nthreading.Thread(target=main).start()"
    ),
    "errors": (
        "import sys\nprint('debug', file=sys.stderr)\nn = int(input())\nprint(sum(int(input()) for _ in range(n)))"
    ),
}
