"""The prompts of samples.md, written by hand in the manner of people who try the product for the first time."""

from dataclasses import dataclass

from turns import Turn

WRITER = "You are an intelligent, skilled, versatile writer."
STORY = f"{WRITER}\n\nYour task is to write a story based on the information below.\n\n\n"
PLAY = f"{WRITER}\n\nYour task is to write a role-play based on the information below.\n\n\n"


@dataclass(frozen=True)
class Prompt:
    """`header` opens the turn to be written; empty leaves it to the model. `whole_story` goes on until </s>."""

    title: str
    turns: tuple[Turn, ...]
    header: str = "text"
    whole_story: bool = False


def system(text: str) -> Turn:
    return Turn("system", text)


def user(text: str) -> Turn:
    return Turn("user", text)


def assistant(text: str) -> Turn:
    return Turn("assistant", text)


def said(name: str, text: str) -> Turn:
    return Turn("text", text, (name,) if name else ())


LUCIFER = STORY + (
    "## Overall plot description:\n\nThe librarian sets up a blind date between Lucifer and Mia. Lucifer immediately "
    "falls in love with Mia, but Mia needs more space and time to make up her mind.\n\n\n## Style description:\n\n"
    "The narrative is warm and a little funny.\n\n\n## Characters:\n\n### Lucifer\n\nLucifer, the red-skinned, horned "
    "demon, is the embodiment of fallen grace. He hungers for acceptance.\n\n### Mia\n\nMia is a kind woman who loves "
    "books."
)
RON = PLAY + (
    "## Plot description:\n\nHermione and Ron meet in the library of Hogwarts. Ron has lost his wand.\n\n\n"
    "## Characters:\n\n### Hermione\n\nHermione is a clever witch who loves books.\n\n### Ron\n\n"
    "Ron is a funny wizard with red hair."
)
SERAPHINA = PLAY + (
    "## Overall plot description:\n\nConversation between Tom and Seraphina in the forest of Eldoria.\n\n\n"
    "## Characters:\n\n### Seraphina\n\nSeraphina is a gentle healer with pink hair. She protects the forest and is "
    "afraid of fire.\n\n### Tom\n\nTom is a traveller."
)
PIRATE = STORY + (
    "## Overall plot description:\n\nCaptain Brannigan has lost a golden compass. Together with the cook Wilhelmina "
    "he searches the harbour. At last they learn that the parrot trader Zubin took it."
)
MAP = "Write a story. Mara has lost an old map. Tom helps to look for it."
THREE = STORY + (
    "## Overall plot description:\n\nAlice and Bob find a door in the garden. Bob is afraid of it. On the way they "
    "meet Ann, the doctor."
)
ROBOT = "Write a story based on the description below. The robot Bixby wants to learn how to dance. Ada is his teacher."

PROMPTS = (
    Prompt("Lucifer and Mia, the whole story", (system(LUCIFER),), "text", True),
    Prompt("Lucifer speaks", (system(LUCIFER), said("Mia", '"So you are Lucifer," said Mia.')), "text names= Lucifer"),
    Prompt("Mara and Tom, the whole story", (system(MAP),), "text", True),
    Prompt("Three people, the whole story", (system(THREE),), "", True),
    Prompt("Hard: a plot with unknown names, the whole story", (system(PIRATE),), "", True),
    Prompt("One line of plot", (system(ROBOT),), "text", True),
    Prompt("No system prompt", (), "text", True),
    Prompt(
        "An instruction",
        (system(LUCIFER), user("Length: 40 words\nPlot: Lucifer gives Mia a golden book.")),
    ),
    Prompt(
        "A longer instruction",
        (user("Length: 60 words\nPlot: Olga and Piet hear a strange sound at the old windmill."),),
    ),
    Prompt("A named speaker", (user("Plot: Selma tells Igor a joke.\nSpeaker: Selma"),), "text names= Selma"),
    Prompt("Hermione answers a greeting", (system(RON), said("Ron", "Hi Hermione!")), "text names= Hermione"),
    Prompt(
        "Hermione is asked for help",
        (system(RON), said("Ron", "*runs in* I have lost my wand! Can you help me?")),
        "text names= Hermione",
    ),
    Prompt(
        "The model plays on alone",
        (system(RON), said("Hermione", "*looks up from a book* Oh, Ron!"), said("Ron", "Are you hungry?")),
        "",
        True,
    ),
    Prompt(
        "A short SillyTavern prompt",
        (
            system("Write Hermione's next reply in a fictional chat between Hermione and Ron."),
            said("Ron", "Tell me a story about a dragon."),
        ),
        "text names= Hermione",
    ),
    Prompt(
        "Seraphina, where are we", (system(SERAPHINA), said("Tom", "*wakes up* Where am I?")), "text names= Seraphina"
    ),
    Prompt("Seraphina, who are you", (system(SERAPHINA), said("Tom", "Who are you?")), "text names= Seraphina"),
    Prompt(
        "Seraphina, what are you afraid of",
        (system(SERAPHINA), said("Tom", "What are you afraid of?")),
        "text names= Seraphina",
    ),
    Prompt(
        "Hard: something unforeseen",
        (system(SERAPHINA), said("Tom", "I think a big storm is coming. We should find a cave before dark.")),
        "text names= Seraphina",
    ),
    Prompt(
        "A narrator turn in a role-play",
        (system(SERAPHINA), said("Tom", "Let's go to the river."), said("Seraphina", "*nods* To the river, then.")),
    ),
    Prompt(
        "A detailed reply",
        (
            system(SERAPHINA),
            said("Tom", "Tell me about yourself."),
            user("Length: 400 words\nPlot: Seraphina replies to Tom in detailed and elaborate way."),
        ),
        "text names= Seraphina",
    ),
    Prompt(
        "A character over plain chat roles",
        (system("You are Captain Nemo, a proud captain. Stay in character."), user("Hello, who are you?")),
        "assistant",
    ),
    Prompt("Hello", (user("Hello!"),), "assistant"),
    Prompt(
        "A helper with a system prompt", (system("You are a helpful assistant."), user("What can you do?")), "assistant"
    ),
    Prompt("A story from the helper", (user("Write a story about a cat named Minka."),), "assistant"),
    Prompt("A question of fact", (user("What is the capital of France?"),), "assistant"),
    Prompt(
        "A second question",
        (user("Hi"), assistant("Hi! What would you like to do?"), user("Give me a name for a pirate.")),
        "assistant",
    ),
    Prompt("Ideas", (system("You are a helpful assistant."), user("I need an idea for a story")), "assistant"),
    Prompt("How are you", (user("How are you today?"),), "assistant"),
)
