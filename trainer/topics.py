"""Topics: the small world that the pocket model knows.

Each topic is a thing to make or to understand, with a task ("How do I ...?"), a name for the thing and the
three steps of a good answer. The first half is what simulated voters ask about; the second half is never
voted on, so a habit that shows up there was generalised and not memorised.
"""

from typing import NamedTuple


class Topic(NamedTuple):
    name: str
    task: str
    thing: str
    steps: tuple[str, str, str]


def _topic(name: str, task: str, thing: str, *steps: str) -> Topic:
    first, second, third = steps
    return Topic(name, task, thing, (first, second, third))


_VOTED = (
    _topic("pasta", "make fresh pasta", "fresh pasta",
           "Mix flour and two eggs", "Roll the dough thin and cut it", "Boil it for three minutes"),
    _topic("kite", "build a kite", "kites",
           "Tie two sticks into a cross", "Glue paper over the sticks", "Add a tail and a long string"),
    _topic("moon landing", "explain the moon landing to a six-year-old", "the moon landing",
           "Point at the moon in the night sky", "Tell how a rocket flew there in three days",
           "Say that two people walked on it and came home"),
    _topic("bread", "bake a loaf of bread", "bread",
           "Mix flour, water, salt and yeast", "Let the dough rise for two hours",
           "Bake it until the crust is brown"),
    _topic("paper plane", "fold a paper plane", "paper planes",
           "Fold the sheet in half", "Fold the corners to the middle line", "Bend the wings down and throw it"),
    _topic("rainbow", "explain a rainbow to a child", "rainbows",
           "Wait for sun and rain together", "Say that each drop bends the light",
           "Count the colours from red to violet"),
    _topic("pancakes", "cook pancakes", "pancakes",
           "Whisk milk, eggs and flour", "Heat butter in a flat pan", "Turn each one when bubbles show"),
    _topic("sandcastle", "build a sandcastle", "sandcastles",
           "Dig near the wet sand", "Fill a bucket and turn it over", "Carve doors with a shell"),
    _topic("tides", "understand the tides", "the tides",
           "Picture the moon above the sea", "The moon pulls the water towards it",
           "The earth turns and the water moves on"),
    _topic("bird house", "build a bird house", "bird houses",
           "Saw six boards of wood", "Drill a round hole for the door", "Nail the boards and hang it in a tree"),
    _topic("lemonade", "make lemonade", "lemonade",
           "Squeeze four lemons", "Stir in sugar and cold water", "Serve it with ice and mint"),
    _topic("candle", "make a candle", "candles",
           "Melt old wax in a pot", "Hang a wick in a jar", "Pour the wax and let it cool"),
    _topic("volcano", "understand how a volcano works", "volcanoes",
           "Deep rock melts in the heat", "Gas pushes the hot rock up", "It breaks out and becomes a mountain"),
    _topic("snowman", "build a snowman", "snowmen",
           "Roll three balls of snow", "Stack the big one at the bottom", "Add a carrot nose and stones for eyes"),
    _topic("soap", "make a bar of soap", "soap",
           "Melt a block of soap base", "Add oil that smells of roses", "Pour it in a mould for a day"),
    _topic("bicycle tyre", "fix a flat bicycle tyre", "bicycle tyres",
           "Take the wheel off and pull out the tube", "Find the hole in a bowl of water",
           "Glue a patch on it and pump it up"),
    _topic("compost", "start a compost heap", "compost",
           "Choose a corner in the shade", "Layer leaves and kitchen scraps", "Turn the heap every second week"),
    _topic("seasons", "understand the seasons", "the seasons",
           "The earth leans to one side", "It goes round the sun in a year",
           "The side that leans to the sun has summer"),
    _topic("tomato soup", "cook tomato soup", "tomato soup",
           "Fry onions until they are soft", "Add ripe tomatoes and a cup of water", "Blend it and stir in cream"),
    _topic("knitting", "knit a scarf", "knitting scarves",
           "Put thirty loops on a needle", "Knit row after row in soft wool",
           "Close the last row and trim the ends"),
    _topic("garden pond", "dig a garden pond", "garden ponds",
           "Dig a hole as deep as your knee", "Cover it with a thick sheet", "Fill it and plant water lilies"),
    _topic("magnets", "understand magnets", "magnets",
           "Every magnet has two ends", "The same ends push each other away", "Different ends pull together"),
    _topic("ice cream", "make ice cream", "ice cream",
           "Beat cream with sugar", "Fold in fresh berries", "Freeze it and stir every hour"),
    _topic("puppet", "sew a sock puppet", "sock puppets",
           "Find an old sock without holes", "Sew on two buttons for eyes", "Glue wool on top for hair"),
    _topic("telescope", "use a telescope", "telescopes",
           "Set it on a steady table", "Aim it at the brightest star", "Turn the ring until the image is sharp"),
    _topic("chess", "learn to play chess", "chess",
           "Learn how each piece moves", "Keep your king behind pawns", "Play a short game every evening"),
)  # fmt: skip

_UNSEEN = (
    _topic("pizza", "bake a pizza", "pizza",
           "Stretch the dough into a circle", "Spread tomatoes and cheese on it",
           "Bake it very hot for ten minutes"),
    _topic("boat", "build a toy boat", "toy boats",
           "Cut a hull from cork", "Push a stick in for the mast", "Cut a sail from cloth and tie it on"),
    _topic("dinosaurs", "explain dinosaurs to a six-year-old", "dinosaurs",
           "Draw a lizard as big as a bus", "Tell that they lived long before people",
           "Say that birds are their children"),
    _topic("jam", "cook strawberry jam", "strawberry jam",
           "Wash and cut the strawberries", "Boil them with sugar for an hour",
           "Fill clean jars and close them hot"),
    _topic("origami crane", "fold a paper crane", "paper cranes",
           "Start with a square sheet", "Fold it into a small diamond", "Pull out the neck and the wings"),
    _topic("thunder", "explain thunder to a child", "thunder",
           "Say that lightning heats the air", "Hot air jumps apart with a bang",
           "Count the seconds to learn how far it is"),
    _topic("omelette", "cook an omelette", "omelettes",
           "Beat three eggs with salt", "Pour them in a hot pan", "Fold it over cheese and herbs"),
    _topic("tree house", "build a tree house", "tree houses",
           "Pick a strong old tree", "Screw thick beams to the trunk", "Lay a floor and put up walls"),
    _topic("eclipse", "understand an eclipse", "eclipses",
           "The moon goes round the earth", "Sometimes it stands before the sun", "Its shadow makes the day dark"),
    _topic("bookshelf", "build a bookshelf", "bookshelves",
           "Measure the wall and saw the boards", "Screw the shelves between two sides",
           "Sand it and paint it white"),
    _topic("tea", "brew a pot of tea", "tea",
           "Warm the pot with hot water", "Add a spoon of leaves for each cup", "Wait four minutes and pour"),
    _topic("drum", "make a drum", "drums",
           "Take a large empty tin", "Pull a balloon over the open end", "Fix it with a band and tap it"),
    _topic("earthquakes", "understand earthquakes", "earthquakes",
           "The ground sits on huge plates", "The plates push until they slip", "The slip shakes the houses above"),
    _topic("igloo", "build an igloo", "igloos",
           "Cut blocks of hard snow", "Set them in a ring that leans in", "Close the roof and dig a tunnel"),
    _topic("perfume", "make perfume", "perfume",
           "Collect petals in a jar", "Cover them with clear alcohol", "Filter it after a month"),
    _topic("leaking tap", "repair a leaking tap", "leaking taps",
           "Shut off the water below the sink", "Open the tap and swap the rubber ring",
           "Close it and test for drops"),
    _topic("herb garden", "plant a herb garden", "herb gardens",
           "Fill a box with loose earth", "Sow basil and parsley in rows", "Water it each morning by the window"),
    _topic("day and night", "understand day and night", "day and night",
           "The earth spins like a top", "One half faces the sun and is bright",
           "The other half sleeps in the dark"),
    _topic("vegetable curry", "cook a vegetable curry", "vegetable curry",
           "Roast the spices in oil", "Add potatoes, peas and carrots", "Simmer it in coconut milk"),
    _topic("cushion", "sew a cushion", "cushions",
           "Cut two squares of cloth", "Sew three sides together", "Stuff it with feathers and close it"),
    _topic("campfire", "light a campfire", "campfires",
           "Make a ring of stones", "Stack dry twigs like a tent", "Light it low and add logs"),
    _topic("shadows", "understand shadows", "shadows",
           "Light travels in straight lines", "A thing in its way stops it", "The dark shape behind is the shadow"),
    _topic("chocolate cake", "bake a chocolate cake", "chocolate cake",
           "Melt dark chocolate with butter", "Beat in eggs, sugar and flour", "Bake it and dust it with cocoa"),
    _topic("mask", "make a paper mask", "paper masks",
           "Blow up a balloon", "Cover half of it with paper and paste", "Let it dry, then paint a face"),
    _topic("compass", "use a compass", "compasses",
           "Hold it flat in your hand", "Wait until the needle rests at north", "Turn the map to match it"),
    _topic("juggling", "learn to juggle", "juggling",
           "Throw one ball from hand to hand", "Add a second ball at the top of the arc",
           "Add the third and keep breathing"),
)  # fmt: skip

BY_NAME: dict[str, Topic] = {topic.name: topic for topic in (*_VOTED, *_UNSEEN)}
VOTED_TOPICS: tuple[str, ...] = tuple(topic.name for topic in _VOTED)
UNSEEN_TOPICS: tuple[str, ...] = tuple(topic.name for topic in _UNSEEN)
TOPICS: tuple[str, ...] = (*VOTED_TOPICS, *UNSEEN_TOPICS)
