"""The words of the built-in corpus: six communities, and the everyday life that they share.

A post is put together from these parts, for example ::

    Disaster on the allotment: I ruined the dahlias, knee-deep in straw mulch.
    '-- mishap ---' '- place ---'         '-subject-' '------ detail -----'
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """A field of life: what its posts are about.

    Attributes
    ----------
    name : str
        For readers of the code; no text has it.
    subjects, places, details : tuple of str
        Parts of a post. A subject starts with its article and has at most two words more.
    outings : tuple of str
        What one can visit or try, and rate.
    """

    name: str
    subjects: tuple[str, ...]
    places: tuple[str, ...]
    details: tuple[str, ...]
    outings: tuple[str, ...]


@dataclass(frozen=True)
class Community:
    """A latent group: its own world, and its conventions for every world.

    Attributes
    ----------
    world : World
        What its people talk about among themselves.
    tag_shift : int
        Turns the wheel of tags: a kind of post that is not in ``COMMON_TAGS`` has another tag in
        every community.
    taste : tuple of str
        The trait that it loves in an outing and the trait that it cannot stand.
    headline : str
        How its headlines look, with ``{core}`` for what happened.
    """

    world: World
    tag_shift: int
    taste: tuple[str, str]
    headline: str


EVERYDAY = World(
    "everyday life",
    subjects=(
        "the night train",
        "the office plant",
        "the coffee machine",
        "the winter coat",
        "the old umbrella",
        "the spare room",
        "the lost suitcase",
        "the corner shop",
        "the front door",
        "the weekend paper",
    ),
    places=(
        "on the way home",
        "at the office",
        "in the hallway",
        "at the station",
        "across the street",
        "in the waiting room",
    ),
    details=(
        "rain or shine",
        "long before breakfast",
        "in front of the neighbours",
        "just like last year",
        "with a cold coming on",
        "on a grey Tuesday",
    ),
    outings=(
        "a seaside hotel",
        "a corner café",
        "a city museum",
        "a ferry crossing",
        "a barber shop",
        "a swimming pool",
        "a book shop",
        "a walking tour",
    ),
)

GARDENING = World(
    "gardening",
    subjects=(
        "the dahlias",
        "the tomato seedlings",
        "the compost heap",
        "the runner beans",
        "the heirloom pumpkins",
        "the rhubarb patch",
        "the sweet peas",
        "the water butt",
        "the garden shears",
        "the bean poles",
    ),
    places=(
        "on the allotment",
        "behind the potting shed",
        "under the pear tree",
        "in raised bed four",
        "at the seed swap",
        "beside the cold frame",
    ),
    details=(
        "with soil up to the elbows",
        "before the slugs woke up",
        "after the first frost",
        "while the robin supervised",
        "knee-deep in straw mulch",
        "one watering can later",
    ),
    outings=(
        "a garden centre",
        "a rose show",
        "a plant nursery",
        "a pumpkin contest",
        "a walled garden",
        "a pruning course",
        "a tulip field",
        "a seed library",
    ),
)

RETRO_GAMING = World(
    "retro gaming",
    subjects=(
        "the boxed cartridge",
        "the arcade cabinet",
        "the final boss",
        "the pixel sprites",
        "the blinking joystick",
        "the handheld console",
        "the high score",
        "the chiptune soundtrack",
        "the save battery",
        "the light gun",
    ),
    places=(
        "in the basement arcade",
        "at level nine",
        "on the tube television",
        "at the cartridge stall",
        "in two-player mode",
        "on the password screen",
    ),
    details=(
        "with one life left",
        "after blowing out the dust",
        "while the menu music looped",
        "sixteen colours and all",
        "thumbs sore from the buttons",
        "without the cheat code",
    ),
    outings=(
        "a pinball hall",
        "a speedrun night",
        "a console repair shop",
        "an arcade reunion",
        "a game jam",
        "a cartridge fair",
        "a joystick museum",
        "a platformer remake",
    ),
)

ASTRONOMY = World(
    "astronomy",
    subjects=(
        "the ring nebula",
        "the telescope mirror",
        "the crescent moon",
        "the meteor shower",
        "the new eyepiece",
        "the star chart",
        "the comet tail",
        "the tracking mount",
        "the double star",
        "the lunar eclipse",
    ),
    places=(
        "at the dark-sky site",
        "over the northern horizon",
        "through the ten-inch telescope",
        "on the observatory roof",
        "under a moonless sky",
        "near the Pleiades",
    ),
    details=(
        "red torch between my teeth",
        "before the clouds rolled in",
        "waiting for the dew to lift",
        "with Jupiter setting behind us",
        "at magnitude eleven",
        "eyes fully used to the dark",
    ),
    outings=(
        "a planetarium show",
        "a star party",
        "an observatory tour",
        "a telescope workshop",
        "an eclipse cruise",
        "a meteorite fair",
        "a moon lecture",
        "a sundial trail",
    ),
)

CYCLING = World(
    "cycling",
    subjects=(
        "the touring frame",
        "the mountain pass",
        "the front derailleur",
        "the saddle bag",
        "the tubeless tyres",
        "the sprint finish",
        "the brake pads",
        "the gravel shortcut",
        "the leather saddle",
        "the headwind stage",
    ),
    places=(
        "on the long climb",
        "at kilometre ninety",
        "outside the bike workshop",
        "along the canal towpath",
        "in the slow peloton",
        "on the wet descent",
    ),
    details=(
        "chain oil on both hands",
        "with legs like custard",
        "in the smallest gear",
        "two flat tyres later",
        "pedals still spinning",
        "helmet on back to front",
    ),
    outings=(
        "a gravel race",
        "a velodrome evening",
        "a bike café",
        "a hill climb",
        "a frame builder's workshop",
        "a cycling holiday",
        "a tandem rally",
        "a night ride",
    ),
)

BAKING = World(
    "baking",
    subjects=(
        "the sourdough starter",
        "the puff pastry",
        "the custard tarts",
        "the rye loaf",
        "the cinnamon buns",
        "the cake tin",
        "the rolling pin",
        "the lemon meringue",
        "the bread oven",
        "the poppy bagels",
    ),
    places=(
        "on the middle rack",
        "in a floury kitchen",
        "at the village bake sale",
        "in the proving basket",
        "on the cooling tray",
        "under a damp tea towel",
    ),
    details=(
        "with butter to the wrists",
        "just before the timer rang",
        "after a second proving",
        "one pinch of salt short",
        "icing sugar everywhere",
        "crust singing as it cooled",
    ),
    outings=(
        "a pastry class",
        "a bakery opening",
        "a cake contest",
        "a flour mill",
        "a bagel counter",
        "a doughnut van",
        "a sourdough retreat",
        "a gingerbread market",
    ),
)

FILM_MUSIC = World(
    "film music",
    subjects=(
        "the string cue",
        "the theremin solo",
        "the main theme",
        "the brass fanfare",
        "the villain's leitmotif",
        "the closing waltz",
        "the vinyl soundtrack",
        "the choir overdub",
        "the chase percussion",
        "the composer's sketchbook",
    ),
    places=(
        "on the scoring stage",
        "during the end credits",
        "in the mixing booth",
        "at bar sixty-four",
        "behind the cello section",
        "in the director's cut",
    ),
    details=(
        "with the click track off",
        "while the oboe held on",
        "one octave too low",
        "before the orchestra tuned",
        "conductor humming along",
        "in a minor key",
    ),
    outings=(
        "a silent film concert",
        "a soundtrack fair",
        "a recording session",
        "an opera matinee",
        "a jazz score evening",
        "a piano workshop",
        "a festival premiere",
        "a composer's house",
    ),
)

COMMUNITIES = (
    Community(GARDENING, 0, ("old", "new"), "Who knew? {core}"),
    Community(RETRO_GAMING, 3, ("lively", "quiet"), "LEVEL UP: {core}"),
    Community(ASTRONOMY, 6, ("quiet", "lively"), "Entry 42: {core}"),
    Community(CYCLING, 1, ("new", "old"), "Stage report: {core}"),
    Community(BAKING, 4, ("cheap", "dear"), "Fresh today: {core}"),
    Community(FILM_MUSIC, 7, ("dear", "cheap"), "Fade in: {core}"),
)

# A kind of post, and three ways to say it.
KINDS: dict[str, tuple[str, ...]] = {
    "success": (
        "Good news, {subject} came out better than hoped {place}, {detail}.",
        "At last {subject} went exactly right {place}, {detail}.",
        "Small miracle {place}: {subject} made me proud, {detail}.",
    ),
    "mishap": (
        "It all went badly wrong with {subject} {place}, {detail}.",
        "Disaster {place}: I ruined {subject}, {detail}.",
        "Nobody warned me that {subject} would collapse {place}, {detail}.",
    ),
    "purchase": (
        "I spent good money on {subject} {place}, {detail}.",
        "Haggled for {subject} {place} and paid cash, {detail}.",
        "My wallet is lighter because of {subject} {place}, {detail}.",
    ),
    "plan": (
        "Next month I will give {subject} another chance {place}, {detail}.",
        "Tomorrow it is time for {subject} {place}, {detail}.",
        "I keep sketching what {subject} could become {place}, {detail}.",
    ),
    "advice": (
        "Take it from me, never rush {subject} {place}, {detail}.",
        "The trick with {subject} {place} is patience, {detail}.",
        "Always label {subject} {place} and go slowly, {detail}.",
    ),
    "company": (
        "A stranger told me all about {subject} {place}, {detail}.",
        "We argued happily over {subject} {place}, {detail}.",
        "Three of us gathered round {subject} {place}, {detail}.",
    ),
}

# Kinds that have the same tag in every community.
COMMON_TAGS = {"success": "triumph", "purchase": "gear", "plan": "dream"}

# What happened to a subject, and how a post tells it; the headline keeps subject and event.
EVENTS = (
    "stole the show",
    "surprised everyone",
    "survived the week",
    "needed another try",
    "caused a scandal",
    "won over sceptics",
    "vanished overnight",
    "cost an evening",
    "started an argument",
    "saved the day",
)
TALES = (
    "This week {subject} {event} {place}, {detail}.",
    "You should have seen it: {subject} {event} {place}, {detail}.",
    "Believe it or not, {subject} {event} {place}, {detail}.",
)

# An outing is good or bad to everyone; its traits please one community and annoy another.
QUALITIES: dict[int, tuple[str, ...]] = {
    +1: ("made with real care", "a joy from start to finish", "run by kind people"),
    -1: ("put together in a hurry", "falling apart at the seams", "run by grumpy people"),
}
TRAITS: dict[str, tuple[str, ...]] = {
    "old": ("unchanged since my childhood", "full of antique brass", "older than the town hall"),
    "new": ("brand new this spring", "all glass and touchscreens", "the very latest thing"),
    "quiet": ("so quiet you hear the clock", "nearly empty all day", "hushed like a library"),
    "lively": ("packed and noisy", "crowded to the doors", "loud with strangers"),
    "cheap": ("for pocket money", "cheap as chips", "costing next to nothing"),
    "dear": ("at a princely price", "expensive even for a treat", "costing a month's rent"),
}
OPPOSITES = (("old", "new"), ("quiet", "lively"), ("cheap", "dear"))
REVIEWS = (
    "We tried {outing}: {quality}, {first}, {second}.",
    "Went to {outing} on Sunday, {quality}, {first} and {second}.",
    "My verdict on {outing}: {quality}, {first}, {second}.",
)

# The last word of everything that one person writes.
SIGNATURES = (
    "again",
    "friends",
    "finally",
    "obviously",
    "hooray",
    "allegedly",
    "folks",
    "phew",
)
