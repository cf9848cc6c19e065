# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""English words to make lists and keys of; none of them is a part of another."""

from __future__ import annotations

ADJECTIVES = """
abrupt absent actual adverse alert ample ancient angry anxious arctic ardent arid astute austere
awake awkward balmy barren bashful bitter bland blunt bold boring brave breezy brief bright brisk
brittle broad bronze bumpy burly busy calm candid careful casual cautious cheap cheerful chilly
chubby civil clean clever clumsy coarse coastal colorful common compact complex concave cordial
cosmic costly cozy crafty creamy crimson crisp crooked crowded crude cruel cubic curious curly damp
daring dazzling decent deep dense dental diligent dirty distant docile dormant double drafty dreary
drowsy dual dusty dynamic eager early earnest eerie elastic elegant eligible eloquent empty endless
enormous equal erratic eternal exact exotic expert fabulous faint faithful famous fancy fearless
feeble fertile fierce fiery final flaky fleeting flexible floral fluffy fluid foamy foggy formal
fragile frail frantic frequent fresh frigid frosty frozen frugal fuzzy gallant gaudy generous gentle
genuine giant giddy gigantic gloomy glossy golden graceful grand grateful gray greasy great greedy
grim gritty grumpy gusty handsome handy happy harsh hasty hazy healthy hearty heavy hefty helpful
hidden hollow honest hopeful horrid hostile huge humble humid hungry ideal idle immense imported
innocent intense ivory jagged jaunty jealous jolly jovial joyful juicy jumbo keen kindly lanky large
latent lavish lazy leafy legal lenient linear little lively local lofty lonely lovely loyal lucid
lumpy lunar luxury magenta majestic mammoth manual marble massive mature mellow merry messy mighty
mild minty misty mobile modern modest moist molten moral muddy muffled mundane murky musical mystic
naive narrow native nautical neat nervous neutral nimble noble noisy normal novel numb nutty oblong
obscure oily opaque open orange ordinary organic ornate oval pale parched partial patient peaceful
perfect petite placid plastic playful pleasant plucky plump poetic polar polite popular portable
potent precise pretty primal prime private profound prompt proper proud prudent public puffy
punctual purple quaint quick quiet quirky radiant rancid random rapid rare rational recent regal
remote robust rocky romantic rosy rough round royal rubbery rugged rural rustic sacred salty sandy
savory scarce scenic secret sedate selfish senior serene severe shabby shaggy shallow sharp shiny
short shrill silent silky silly simple sincere single skinny sleepy slender slim slippery slow smart
smoggy smooth snappy sneaky snowy sober social soft solar solemn solid somber sour sparse special
spicy spiky splendid spotted square stable stale stark static steady steep sticky stiff stormy stout
strict striped strong sturdy subtle sudden sugary sunny superb supple supreme swampy sweet swift
tame tangy tart tasty teal tedious tender tepid thick thirsty thorny thrifty tidy timid tiny tired
total touchy tough tragic tranquil tricky trim tropical trusty tubby twin typical unique upbeat
upper urban urgent useful usual vacant vague valid vast velvety verbal vibrant vicious violet
virtual visible vital vivid vocal warm wary watery wavy wealthy weary weird whole wicked wide wild
windy wintry wise witty wobbly wooden woolly worthy yellow young yummy zany zealous zesty
""".split()

NOUNS = """
abacus academy accent acorn adapter address adult advice agency airport alarm album almond alphabet
altar ambulance anchor ankle answer antenna anvil apple apron arena armor army artist ashtray
asphalt athlete atlas atom attic auction author autumn avenue award axle bachelor backpack bacon
badge bagel baker balance balcony ballad balloon bamboo banana bandage banjo banner bargain barley
barn barrel basin basket battery beacon beagle bean beard beaver bedroom beetle belfry belt bench
berry bicycle biscuit bishop blanket blazer blender blizzard blossom bonfire bonnet bookcase
boomerang boot bottle boulder bouquet bracelet brain branch bread breeze brick bridge broccoli broom
brush bubble bucket budget buffalo bugle builder bundle bungalow bunker burger bush butter button
cabbage cabin cable cactus cafe calendar camel camera campus canal canary candle cannon canoe canvas
canyon captain caravan carbon cargo carnival carpet carrot cartoon cashew casino castle cathedral
cattle caution cavern cedar ceiling celery cellar cello cement census ceramic cereal chain chair
chalk chapel chariot charm cheese chef cherry chest chicken chimney chisel chord church cider cigar
cinema circle circus citizen citrus clarinet classroom clay cliff clinic clock closet cloud clover
clown coach cobbler cobweb cockpit coconut coffee coin collar college column comet comma compass
concert copper coral cork corner cottage cotton couch council cousin cowboy cradle crane crater
crayon cricket crocodile crossbow crown crystal cucumber culture cupboard curtain cushion custard
cymbal dairy daisy dancer dawn debate decade deck denim dentist depot desert desk dessert dialect
diamond diary dictionary diesel dinner dinosaur diploma doctor dolphin domino donkey doorbell dough
dragon drama drawer dream dresser drill drizzle drum duchess duck dungeon dynasty earring echo
eclipse editor elbow elephant elevator embassy emerald emperor engine envelope equator eraser escort
espresso estate evening fabric factory falcon family farmer faucet feast feather fence ferry
festival fever fiddle figure finch finger fireplace flag flame flannel flask fleece flock flour
flower flute forest fork fortress fossil fountain fowl freckle freezer freight friend frog fruit
funnel furnace gadget galaxy gallery gallon garage garden garlic garment gazebo general geyser
giraffe glacier gladiator globe glove goblet goose gopher gorilla granite grape gravel gravity
grocer guitar gymnast habitat hammer hamster harbor harmonica harness harvest hatchet hawk hazelnut
headline hedge helmet hermit heron highway hippo hobby hockey honey hood horizon hornet horse
hospital hotel hurdle husband hydrant igloo infant insect island item jacket jaguar jasmine jelly
jersey jewel jigsaw jockey journal judge jungle jury kayak kennel kernel kettle keyboard kidney
kingdom kiosk kitchen kitten knight knob koala laborer ladder lagoon lamp lantern laptop larva
laundry lawn lawyer leather ledger legend lemon lens leopard lesson letter lettuce library
lighthouse lily limousine linen lizard llama lobster locket locust lotion lounge lunch lyric machine
magnet magpie mailbox mallet mammal mango manor mansion maple marathon margin market marsh mascot
mason mattress meadow medal melody melon memoir merchant mermaid meteor method metro microphone
mineral minister mirror missile mitten molecule monarch monkey monsoon mosaic mosque motor mountain
mouse muffin museum mushroom mustard napkin nebula necklace needle nephew nickel niece notebook
nozzle nurse nylon oasis oatmeal ocean octopus office olive omelet onion orbit orchard orchid
ostrich oven oxygen oyster paddle padlock painter palace pancake panda panel panther papaya paper
parade parcel parrot parsley pasta pastry patio pavement peach peacock peanut pearl pebble pelican
pencil penguin pension pepper perfume petal phantom pharmacy piano pickle picnic pier pigeon pillow
pilot pirate pistachio pizza planet plank plaza plow plumber pocket poem polygon pony porch portrait
poster potato pottery powder prairie prince prison prize prophet province puddle pulley pumpkin
puppet purse puzzle pyramid python quail quarry quartz quilt rabbit raccoon radar radio radish
railway rainbow raisin ravine razor receipt recipe reef referee reptile resort ribbon rice rifle
river robe robin rocket rodeo rooster rudder saddle safari sailor salad salmon sandal sapphire
sardine satchel sauce sausage scarf school scissors scooter scorpion screw sculptor seagull senator
shadow shampoo shark shelf sheriff shield shovel shrimp shrub siren skeleton sketch sloth snail sofa
soldier soup spider spinach sponge spoon squirrel stadium staircase stapler statue stomach stool
stove street suburb subway suitcase sultan summer surgeon swan sweater sword syrup tablet tadpole
tailor tapestry target tavern teacher teapot temple tennis theater thimble throne thumb thunder
ticket tiger timber tobacco toddler tomato torch tornado tortoise towel tower tractor trailer
treasure trellis triangle trombone trophy trout trumpet tulip tundra tunnel turbine turkey turnip
turtle tuxedo umbrella uncle unicorn uniform vaccine valley vampire vase vault vehicle village
vinegar violin visitor volcano voyage waffle wagon wallet walnut walrus warehouse warrior weapon
weasel wedding whale wharf wheat whisker whistle widow willow window winter wizard wolf wombat
workshop wreath wrench yacht yogurt zebra zeppelin zipper zucchini
""".split()

VERBS = """
absorb accept achieve acquire adjust admire admit adopt advise afford agree amuse announce annoy
apologize appear applaud approve arrange arrive ascend assemble assist attach attend avoid bathe
become begin behave believe belong bend blink borrow bounce breathe bring browse bury carry catch
celebrate chew choose chop chuckle clap climb cling collect combine comfort commute compare compete
complain compose conceal confess confirm connect consume contain convince copy cough count crawl
create creep cultivate dare decide declare decline decorate defend delay deliver demand deny depart
depend describe deserve destroy detect develop devote digest discover discuss dissolve divide donate
drift drink drive drown educate embrace employ enable enclose encourage enjoy enter escape estimate
examine exceed exchange exclude excuse exist expand explain explore express fasten fetch finish
float follow forbid forget forgive gallop gather giggle glance gnaw grab grasp greet grind groan
grow grumble guard guess guide gulp happen hesitate hike hover hurry identify ignore imagine imitate
immerse improve include inflate inform inhale inherit inject inquire insert insist inspect inspire
install invade invent invest invite involve irrigate juggle jump justify kneel knit knock know laugh
launch leap learn lecture linger listen locate loosen lurk manage mangle marry measure meditate meet
melt mention migrate mingle moan mumble mutter navigate neglect negotiate nibble notice nourish obey
obtain occupy occur offend omit operate oppose pardon perform permit persuade plunge polish ponder
postpone pounce pour practice pray predict prefer prepare preserve pretend prevent proceed produce
promise pronounce propose protect provide publish punish purchase pursue push qualify quarrel quench
question quit quiver realize receive recognize recommend recover recruit reduce reflect refuse
regret reject rejoice relax release rely remain remember remind remove repair repeat reply rescue
resemble resist resolve respond restore retire return reveal revolve reward rinse roam roar rotate
ruin rummage rustle satisfy scatter scold scramble scrape scratch scribble scrub search select
separate settle shiver shout shrink shrug shuffle sigh simmer skate skip slide smile sneeze sniff
snore soothe speak spill splash sprinkle sprint squeeze stagger stare starve stir stretch stroll
struggle stumble submit succeed suffer suggest supply support suppose surprise surrender survive
swallow swap sway swell swim swing tackle tangle tease tempt testify thank thaw think thrive throw
tickle topple toss translate travel treat tremble trudge twirl twist twitch uncover understand
unfold unite unpack untie vanish volunteer wander warn watch weave weep weigh welcome whimper
whisper wiggle wink wipe wish wither wonder worship wrap wrestle wriggle write yawn yearn yield
zigzag
""".split()
